"""From claims to problems: conflicts between methods, and needs that a stage does not meet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mcit.core.config import suggestion
from mcit.core.errors import Problem
from mcit.core.types import SHARED, SLOTS, STREAM_SLOTS, Claims, Plan, Stage
from mcit.methods.base import HOOKS, Method
from mcit.methods.compose import MethodSet, make
from mcit.methods.flow import stream_problems

FORGETS = frozenset({"forget", "refusal", "pair"})
"""Streams of the rows of a stage's ``forget``."""
_BESIDE = frozenset({"decouple"})
"""Streams of rows that go with them, one by one."""
_PLACED = re.compile(r"stages?[ \[]")
"""A place that names its stage; any other is a setting of the method."""


def check_stage(stage: Stage, plan: Plan, *, where: str) -> list[Problem]:
    """Every conflict and unmet need of the methods of one stage, and what each method's own check says."""
    methods = [make(spec) for spec in stage.methods]
    problems = [
        *_slots(methods, where),
        *_passes(methods, where),
        *_twice(methods, where),
        *_exclusive(methods, where, "slots", "needs slot {name}, which '{other}' already holds"),
        *_exclusive(methods, where, "streams", "opens stream '{name}', which '{other}' already opens"),
        *_editors(methods, stage, where),
        *stream_problems(methods, stage, plan, where),
    ]
    for i, method in enumerate(methods):
        place = f"{where}.methods[{i}] ({method.name})"
        problems += [Problem(place, *found) for found in _needs(method, stage, plan, methods)]
        if plan.config.engine.kind not in method.claims.engines:
            fix = f"set engine.kind to one of {', '.join(sorted(method.claims.engines))}"
            problems.append(Problem(place, f"cannot run on engine {plan.config.engine.kind}", fix))
        if "forget" in method.claims.streams and not stage.forget and not method.prepares:
            fix = "name recipes in the stage's forget, or remove the method"
            problems.append(Problem(place, "forgets rows, but the stage names none to forget", fix))
        found = method.check(stage, plan)
        problems += [p if _PLACED.match(p.where) else replace(p, where=f"{place}.{p.where}") for p in found]
    if stage.forget and not any(FORGETS & m.claims.streams for m in methods):
        fix = "list a method that forgets, such as gs_lora"
        problems.append(Problem(f"{where}.forget", "no method of the stage forgets rows", fix))
    if stage.epochs == 0 and not any("weights:edit" in m.claims.slots for m in methods):
        problems.append(
            Problem(
                f"{where}.epochs",
                "is 0 and no method edits weights, so the stage does nothing",
                "set epochs to 1 or more",
            )
        )
    return problems


def has_to_forget(claims: Claims) -> bool:
    """Whether a method with these claims reads the rows that a stage forgets, or what goes with them."""
    return bool((FORGETS | _BESIDE) & claims.streams) or "stream:forget" in claims.needs


def hook_table(stage: Stage) -> dict[str, list[str]]:
    """Who acts on which hook, in calling order."""
    methods = MethodSet.build(stage)
    return {hook: names for hook in HOOKS if (names := [m.name for m in methods.order(hook)])}


def _slots(methods: Sequence[Method], where: str) -> list[Problem]:
    """Slots that do not exist."""
    return [
        Problem(f"{where}.methods[{i}] ({method.name})", f"claims the slot '{slot}', which does not exist", fix)
        for i, method in enumerate(methods)
        for slot in sorted(method.claims.slots - SLOTS)
        if not any(slot.startswith(prefix) and len(slot) > len(prefix) for prefix in STREAM_SLOTS)
        for fix in [suggestion(slot, [*SLOTS, *(f"{prefix}<stream>" for prefix in STREAM_SLOTS)])]
    ]


def _passes(methods: Sequence[Method], where: str) -> list[Problem]:
    """The hook and the slot of passes go together; a note says what they cost."""
    problems = []
    for i, method in enumerate(methods):
        place, has = f"{where}.methods[{i}] ({method.name})", method.overrides("passes")
        if has != ("step:passes" in method.claims.slots):
            what = (
                "has the hook passes, but not the slot" if has else "holds the slot step:passes, but has no hook passes"
            )
            problems.append(Problem(place, what, "claim the slot step:passes and implement passes, or neither"))
        elif has:
            cost = f"{method.step_passes:g} forward and backward passes over the rows of a step, {method.step_copies}"
            problems.append(Problem(place, f"{cost} copies of what trains held meanwhile", "", "note"))
    return problems


def _twice(methods: Sequence[Method], where: str) -> list[Problem]:
    names = [m.name for m in methods]
    return [
        Problem(f"{where}.methods", f"'{name}' is listed twice", "remove one")
        for name in sorted({n for n in names if names.count(n) > 1})
    ]


def _exclusive(methods: Sequence[Method], where: str, claim: str, says: str) -> list[Problem]:
    """A slot has one holder, a stream one opener."""
    first: dict[str, str] = {}
    problems = []
    for i, method in enumerate(methods):
        for name in sorted(getattr(method.claims, claim) - SHARED):
            if name in first:
                what = says.format(name=name, other=first[name])
                fix = "remove one of the two from this stage"
                problems.append(Problem(f"{where}.methods[{i}] ({method.name})", what, fix))
            first.setdefault(name, method.name)
    return problems


def _editors(methods: Sequence[Method], stage: Stage, where: str) -> list[Problem]:
    editors = [m.name for m in methods if m.overrides("before_step")]
    problems = []
    if len(editors) > 1 and set(stage.gradient_order) != set(editors):
        what = f"{' and '.join(editors)} all have before_step, so their order matters"
        problems.append(
            Problem(
                f"{where}.gradient_order", what, f"set gradient_order: [{', '.join(editors)}] in the order you want"
            )
        )
    for name in stage.gradient_order:
        if name not in editors:
            problems.append(
                Problem(f"{where}.gradient_order", f"'{name}' edits no gradients in this stage", "remove it")
            )
    return problems


def _needs(method: Method, stage: Stage, plan: Plan, methods: Sequence[Method]) -> list[tuple[str, str]]:
    adapter = stage.adapter
    have = {
        f"adapter:{adapter.kind}",
        f"carry:{adapter.carry}",
        *(need for need in method.claims.needs if need.startswith("hidden:")),  # named layers: see plan.preflight
        "reference:stage_start",
        "reference:base",
        "dtype:full",
        *(f"stream:{stream}" for other in methods for stream in other.claims.streams),
    }
    if adapter.kind == "none" or all(s.adapter.carry in ("keep", "none") for s in plan.stages[: stage.index - 1]):
        have.add("names:kept")
    low = plan.config.base.dtype in ("nf4", "int8")
    if low:
        have -= {"dtype:full", "carry:merge"}
    cures = {
        "adapter:lora": "set adapter.kind: lora in this stage",
        "adapter:none": "set adapter.kind: none in this stage",
        "carry:merge": "set adapter.carry: merge in this stage",
        "carry:stack": "set adapter.carry: stack in this stage",
        "carry:pool": "set adapter.carry: pool in every stage, and name a router",
        "stream:forget": "list a method that opens it, such as bounded_forget",
        "names:kept": "set adapter.carry: keep in every stage before, or adapter.kind: none",
    }
    if low:
        cures["dtype:full"] = "set base.dtype: bf16, or remove the method"
        cures["carry:merge"] = "set base.dtype: bf16, or adapter.carry: stack and a method that allows it"
    shown = {
        "adapter": f"adapter.kind is {adapter.kind}",
        "carry": f"adapter.carry is {adapter.carry}",
        "names": "an earlier stage does not keep its adapter, so this stage's is a new one under the same names",
    }
    out = []
    needs = method.claims.needs | ({"dtype:full"} if "weights:edit" in method.claims.slots else set())
    for need in sorted(needs - have):
        why = shown.get(need.split(":")[0], "nothing in this stage provides it")
        if low and need in ("dtype:full", "carry:merge"):
            why = f"base.dtype is {plan.config.base.dtype}, whose weights cannot be changed without losing the update"
        out.append(
            (f"needs {need}, but {why}", cures.get(need, "remove the method, or choose one that does not need it"))
        )
    return out
