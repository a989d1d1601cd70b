"""What the methods of a stage leave to train, found on the model's skeleton before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcit.core.errors import McitError, Problem
from mcit.core.seeds import seed_for
from mcit.core.types import JsonDict, Plan, Stage
from mcit.methods.base import Method
from mcit.methods.compose import MethodSet
from mcit.models import adapters
from mcit.models.units import weight_units


@dataclass(frozen=True)
class Names:
    """What `select_trainable` may know."""

    stage: Stage
    seed: int
    shapes: Mapping[str, tuple[int, ...]]


def member_problems(plan: Plan) -> list[Problem]:
    """Methods that freeze a part of an adapter, beside a router that puts earlier adapters into its place."""
    if plan.router is None or not plan.router.members:
        return []
    what = f"freezes parts of the adapter, but the router {plan.router.name} reads rows under earlier adapters in its place"
    return [
        Problem(f"stages[{stage.index - 1}].methods ({method.name})", what, "use another router, such as oracle")
        for stage in plan.stages
        for method in MethodSet.build(stage).methods
        if _narrows(method)
    ]


def selection_problems(plan: Plan, model: Any) -> list[Problem]:
    """Stages in which methods together freeze everything, or what one of them needs, or do not fit their own state.

    `model` is a skeleton. Methods go from stage to stage with the state that they foresee.
    """
    known: dict[str, JsonDict] = {}
    return [problem for stage in narrowed(plan) for problem in stage_problems(stage, model, known)]


def narrowed(plan: Plan) -> list[Stage]:
    """Stages with a method that narrows what trains."""
    return [stage for stage in plan.stages if any(map(_narrows, MethodSet.build(stage).methods))]


def _narrows(method: Method) -> bool:
    return method.overrides("select_trainable")


def stage_problems(stage: Stage, model: Any, known: dict[str, JsonDict]) -> list[Problem]:
    """The same for one stage; the skeleton gets the stage's adapter and loses it again.

    `known` is the state of each method by its name, from the stages before; what this one will leave is put there.
    """
    where = f"stages[{stage.index - 1}].methods"
    lora = stage.adapter.kind != "none"
    try:
        if lora:
            adapters.add_lora(model, stage.adapter, seed=seed_for(stage.seed, "adapter"))
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        methods, ctx = MethodSet.build(stage), Names(stage, stage.seed, shapes)
        for method in methods.methods:
            if method.name in known:
                method.load_state_dict(known[method.name])
        names = adapters.candidates(model, stage.adapter)
        chosen = methods.select_trainable(names, ctx)
        for method in methods.methods:
            method.foresee(chosen, ctx)
            known[method.name] = method.state_dict()
    except McitError as error:
        return [Problem(f"{where} ({p.where})", p.what, p.fix) for p in error.problems]
    finally:
        if lora:
            adapters.remove(model)
    if not lora:
        return []
    pairs = [n for n in chosen if ".lora_" in n]
    scales = dict.fromkeys({n.split(".lora_")[0] for n in pairs}, 1.0)
    units = [u for u in weight_units(shapes, pairs, adapter=adapters.ACTIVE, scales=scales) if u.kind == "lora"]
    return _unmet(methods, units, where)


def _unmet(methods: MethodSet, units: list[Any], where: str) -> list[Problem]:
    """Methods that act on LoRA pairs, where none is left or one is split."""
    freezers = ", ".join(m.name for m in methods.methods if _narrows(m))
    split = [unit.name for unit in units if set(unit.params) != {"A", "B"}]
    problems = []
    for method in methods.methods:
        if "adapter:lora" not in method.claims.needs:
            continue
        if not units:
            what = f"needs LoRA pairs that train, but {freezers} freezes all of them"
            problems.append(Problem(f"{where} ({method.name})", what, "remove one of the methods from this stage"))
        elif split:
            what = f"needs whole LoRA pairs, but {freezers} freezes one half of '{split[0]}'"
            fix = "let that method freeze whole pairs, or remove one of the two"
            problems.append(Problem(f"{where} ({method.name})", what, fix))
    return problems
