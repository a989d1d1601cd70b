"""Problems of who orders, chooses and groups the rows of which stream."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.errors import Problem
from mcit.core.types import STREAM_SLOTS, Plan, Stage
from mcit.methods.base import Method

HOOK_SLOTS = tuple(prefix.removesuffix(":") for prefix in STREAM_SLOTS)
"""Slots of a stream are filled by the hook of their name."""


def stream_problems(methods: Sequence[Method], stage: Stage, plan: Plan, where: str) -> list[Problem]:
    """Slots and groups of streams that nobody opens, two makers of one order, groups that do not fit."""
    opened = {"task"}.union(*(m.claims.streams for m in methods))
    pools = {pool.recipe: pool.rows.get("train", 0) for pool in stage.pools}
    mixed = [m.name for m in methods if m.mixed_rows(pools)]
    makers: dict[str, str] = {}
    problems = []
    for i, method in enumerate(methods):
        place = f"{where}.methods[{i}] ({method.name})"
        found: list[tuple[str, str]] = []
        slots = [slot.partition(":")[::2] for slot in sorted(method.claims.slots)]
        slots = [(hook, stream) for hook, stream in slots if hook in HOOK_SLOTS]
        for hook, stream in slots:
            if stream not in opened:
                found.append(
                    (f"holds {hook}:{stream}, a stream that no method of the stage opens", "open it, or remove it")
                )
            if stream in makers:
                found.append((f"orders stream '{stream}', as '{makers[stream]}' does", "remove one of the two"))
            makers.setdefault(stream, method.name)
            if not method.overrides(hook):
                found.append((f"holds slot {hook}:{stream} and has no hook '{hook}'", f"write {hook}()"))
            if stream == "task" and mixed:
                found.append(
                    (f"orders the task's rows, into which '{mixed[0]}' shuffles others", "remove one of the two")
                )
        for hook in HOOK_SLOTS:
            if method.overrides(hook) and hook not in {h for h, _ in slots}:
                found.append((f"has a hook '{hook}' and claims no slot {hook}:<stream>", "claim the slot"))
        found += _group_problems(method, stage, plan, mixed)
        problems += [Problem(place, *each) for each in found]
    return problems


def _group_problems(method: Method, stage: Stage, plan: Plan, mixed: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    size = plan.config.engine.micro_batch
    for stream, group in sorted(method.claims.groups.items()):
        mine = stream in method.claims.streams or {f"{hook}:{stream}" for hook in HOOK_SLOTS} & method.claims.slots
        if not mine:
            found.append((f"groups stream '{stream}' without opening or ordering it", f"claim the slot order:{stream}"))
        if group > size:
            what = f"{group} rows of stream '{stream}' must share a micro-batch, which takes {size}"
            found.append((what, f"set engine.micro_batch to {group} or more"))
        if stream == "task" and stage.optim.batch % group:
            found.append((f"groups of {group} rows do not divide optim.batch {stage.optim.batch}", "use a multiple"))
        if stream == "task" and mixed:
            found.append((f"groups the task's rows, into which '{mixed[0]}' shuffles others", "remove one of the two"))
    return found
