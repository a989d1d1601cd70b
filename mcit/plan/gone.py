"""Data of requests to forget that were deleted: a run that has forgotten them goes on with what it recorded of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mcit.core.errors import StateError
from mcit.core.types import FORGET_DATA, JsonDict, Plan, Stage, TaskSpec
from mcit.runs.run import Run


@dataclass(frozen=True)
class Recorded:
    """A data set of a request as a run recorded it."""

    task: TaskSpec
    stages: int
    """Committed stages of that run: a later stage cannot read the data set."""


def forget_data(plan: Plan) -> dict[str, JsonDict]:
    """What plan.json keeps of the data sets that requests to forget bring, by recipe; none of their rows."""
    learned = {task.recipe for task in plan.tasks}
    tasks = {t.recipe: t for stage in plan.stages for key in FORGET_DATA for t in getattr(stage, key)}
    return {
        recipe: {
            "task": task.name,
            "digest": task.digest,
            "rows": dict(task.rows),
            "scorer": task.scorer,
            "style": task.style,
            "max_new_tokens": task.max_new_tokens,
        }
        for recipe, task in sorted(tasks.items())
        if recipe not in learned
    }


def recorded(runs: Iterable[Run], *, name: str) -> dict[str, Recorded]:
    """Data sets of requests that runs of a name recorded, by recipe; of several runs the one that has come furthest."""
    found: dict[str, Recorded] = {}
    for run in runs:
        try:
            plan, done = run.plan(), len(run.committed())
        except StateError:
            continue  # a damaged run is told where it is opened
        for recipe, kept in plan.get("forget_data", {}).items() if plan["name"] == name else ():
            if recipe not in found or found[recipe].stages < done:
                more = {key: kept[key] for key in ("digest", "rows", "scorer", "style", "max_new_tokens")}
                task = TaskSpec(kept["task"], recipe, Path("deleted"), gone=True, **more)
                found[recipe] = Recorded(task, done)
    return found


def gone(stage: Stage) -> list[str]:
    """Recipes of a stage's request whose data were deleted."""
    return [task.recipe for key in FORGET_DATA for task in getattr(stage, key) if task.gone]


def unmeasured(stage: Stage) -> str:
    """What a stage whose data were deleted goes without; empty where nothing was deleted."""
    deleted = ", ".join(gone(stage))
    return (
        f"the data of {deleted} were deleted: no score, kit or attack of this request from here on" if deleted else ""
    )


def without_data(stages: Iterable[Stage], run: Run) -> list[str]:
    """What is not measured any more, a line per stage. Raises StateError for such a stage that is still to be trained."""
    lines = []
    for stage in filter(gone, stages):
        if not run.is_committed(stage.folder):
            what = f"stage {stage.folder} is not committed here, and the data of its request were deleted"
            raise StateError(what, where=", ".join(gone(stage)), fix="restore them, or leave the stage out")
        lines.append(f"note: stage {stage.folder}: {unmeasured(stage)}")
    return lines
