"""What a plug-in owes, for packages outside of mcit: call these from your own tests, with the name a config would use.

Each trains short runs of the tiny model below `folder` (seconds on a CPU, nothing is downloaded) and raises ContractError with
what went wrong. A method without a setting ``weight`` must hold a slot that says what it does instead; with one, 0 is inert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcit.core import lookup
from mcit.core.config import parse
from mcit.core.errors import Interrupted, McitError
from mcit.core.files import sha256_file
from mcit.core.interfaces import Silent

_TINY: dict[str, Any] = {
    "name": "contract",
    "base": {"family": "tiny", "dtype": "fp32"},
    "engine": {"micro_batch": 4, "workers": 0, "device": "cpu"},
    "checkpoint": {"every": 0},
    "eval": {"tasks": "none"},
    "stages": [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"}],
}
_STAGE = {"adapter": {"rank": 4, "alpha": 8}, "optim": {"batch": 8, "lr": 1e-2, "warmup": 0}, "max_steps": 4}
Digests = dict[str, str]


class ContractError(AssertionError):
    """A plug-in does not do what its kind owes."""


def method_contract(
    name: str, settings: Mapping[str, Any] | None = None, *, folder: Path, defaults: Mapping[str, Any] | None = None
) -> None:
    """Unknown settings refused; stopped and continued bitwise as never stopped; weight 0 inert, or a slot held."""
    from mcit.methods.base import Method

    cls = lookup.class_of("methods", name, base=Method)
    _refuses_unknown(cls.Config, name)
    given = {**_STAGE, **(defaults or {}), "methods": [{"name": name, **(settings or {})}]}
    straight = _trained(folder / "straight", defaults=given)
    _require(_trained(folder / "stopped", stop=6, defaults=given) == straight, f"{name}: a stop changes the weights")
    if "weight" in cls.Config.model_fields:
        off = {**given, "methods": [{"name": name, **(settings or {}), "weight": 0.0}]}
        without = {**given, "methods": []}
        same = _weights(_trained(folder / "off", defaults=off)) == _weights(
            _trained(folder / "without", defaults=without)
        )
        _require(same, f"{name}: weight 0 is not inert")
        _require(_weights(straight) != _weights(_trained(folder / "again", defaults=without)), f"{name}: has no effect")
    else:
        made = cls(parse(cls.Config, dict(settings or {}))[0])
        _require(bool(made.claims.slots), f"{name}: has no weight and holds no slot")


def probe_contract(name: str, settings: Mapping[str, Any] | None = None, *, folder: Path) -> None:
    """Unknown settings refused; weights are those of the run without it, also when stopped and continued."""
    from mcit.probes.base import Probe

    _refuses_unknown(lookup.class_of("probes", name, base=Probe).Config, name)
    probes = [{"use": name, **(settings or {})}]
    plain = _weights(_trained(folder / "plain"))
    _require(_weights(_trained(folder / "probed", probes=probes)) == plain, f"{name}: changes the weights")
    _require(
        _weights(_trained(folder / "stopped", stop=6, probes=probes)) == plain, f"{name}: a stop changes the weights"
    )


def router_contract(name: str, settings: Mapping[str, Any] | None = None, *, folder: Path) -> None:
    """Unknown settings refused; a pool stopped and continued is the same, router state included; `route` stands alone."""
    from mcit.export.pool import route_source
    from mcit.routers.base import router_class

    cls = router_class(name)
    _refuses_unknown(cls.Config, name)
    space: dict[str, Any] = {}
    exec(compile(route_source(cls), name, "exec"), space)
    _require(callable(space.get("route")), f"{name}: route is no function that stands alone")
    adapter = {"rank": 4, "alpha": 8, "also_train": [], "carry": "pool"}
    given: dict[str, Any] = {"defaults": {**_STAGE, "adapter": adapter}, "router": {"use": name, **(settings or {})}}
    straight = _trained(folder / "straight", **given)
    _require(_trained(folder / "stopped", stop=6, **given) == straight, f"{name}: a stop changes adapters or state")


def filter_contract(name: str, answers: Sequence[str], *, settings: Mapping[str, Any] | None = None) -> None:
    """Unknown settings refused; `text` gives the same text every time, and is done after one pass."""
    from mcit.core.types import Row, Turn
    from mcit.evals.filters.base import Filter

    cls = lookup.class_of("evals.filters", name, base=Filter)
    _refuses_unknown(cls.Config, name)
    one, row = (
        cls(parse(cls.Config, dict(settings or {}))[0]),
        Row("r", (), (Turn("user", "q"), Turn("assistant", "a")), "t", "f:1"),
    )
    for answer in answers:
        once = one.text(answer, row)
        _require(isinstance(once, str) and one.text(answer, row) == once, f"{name}: gives two texts for {answer!r}")


def scorer_contract(name: str, pairs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Shares between 0 and 1 in both modes, the same every time, and 1 for the gold answer itself in mode fixed."""
    from mcit.evals.score import load_scorer
    from mcit.evals.scorers.base import MODES

    judge = load_scorer(name)
    for text, gold in pairs:
        for mode in MODES:
            value = judge.score(text, gold, mode=mode)
            _require(
                0 <= value <= 1 and judge.score(text, gold, mode=mode) == value, f"{name}: scores {text!r} as {value}"
            )
        _require(judge.score(str(gold["answer"]), gold, mode="fixed") == 1, f"{name}: the gold answer is not right")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ContractError(what)


def _refuses_unknown(config: Any, name: str) -> None:
    _, problems = parse(config, {"no_such_key": 1})
    _require(any(p.what == "unknown key" for p in problems), f"{name}: its Config accepts unknown keys")


def _trained(folder: Path, *, stop: int | None = None, **config: Any) -> Digests:
    """Tensors and router state that a run commits, by digest; with `stop` it is stopped after so many steps and continued."""
    from mcit.plan.plan import make_plan, parse_run
    from mcit.plan.record import plan_json, resolved
    from mcit.runs.run import open_run
    from mcit.train.sequence import run_sequence

    made, problems = parse_run({**_TINY, "defaults": _STAGE, **config})
    if made is None or problems:
        raise McitError.of(problems)
    plan = make_plan(made)
    steps = 0

    def due() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop

    start: dict[str, Any] = {
        "config_text": "",
        "resolved": resolved(made),
        "plan_json": plan_json(plan),
        "environment": {"versions": {}},
    }
    for _ in range(2):
        run = open_run(plan, runs_dir=folder, **start)
        with run.locked():
            try:
                run_sequence(plan, run, reporter=Silent(), stop=due)
                break
            except Interrupted:
                continue
    stages = run.layout.root / "stages"
    kept = [p for p in sorted(stages.rglob("*")) if p.suffix == ".safetensors" or p.parent.name == "router"]
    return {str(p.relative_to(stages)): sha256_file(p) for p in kept if p.is_file()}


def _weights(found: Digests) -> Digests:
    return {name: digest for name, digest in found.items() if "/methods/" not in name}
