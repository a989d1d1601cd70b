"""Slices of stages in a plan: which data sets they are, what is scored because of them, and what they must not be."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.errors import Problem
from mcit.core.types import JsonDict, Plan, Row, Stage, TaskSpec
from mcit.data.folder import DataFolder

_NAMED = 10
"""Rows that are named one by one."""


def slice_tasks(stages: Sequence[Stage]) -> tuple[TaskSpec, ...]:
    """Data sets of slices that no stage trains or forgets."""
    known = {task.name for stage in stages for task in (*stage.tasks, *stage.forget)}
    every = {task.name: task for stage in stages for task in stage.slices.every}
    return tuple(task for name, task in every.items() if name not in known)


def slices_json(stage: Stage, plan: Plan) -> dict[str, list[str]]:
    """Names of the tasks of each slice of a stage, earlier tasks among what is to be kept."""
    earlier = [task for s in plan.stages if s.index < stage.index for task in s.tasks]
    kept = {t.name for t in (*earlier, *stage.slices.retention)} - {t.name for t in (*stage.tasks, *stage.forget)}
    slices: JsonDict = {key: [t.name for t in getattr(stage.slices, key)] for key in ("neighbourhood", "rephrased")}
    return {**slices, "retention": sorted(kept)}


def slices_due(plan: Plan, after: int) -> tuple[TaskSpec, ...]:
    """Data sets to score after so many stages: the slices of that stage, and what the next one is compared with."""
    own = [task for stage in plan.stages if stage.index == after for task in stage.slices.every]
    following = next((stage for stage in plan.stages if stage.index > after), None)
    return (*own, *(following.slices.before if following else ()))


def slice_problems(plan: Plan) -> list[Problem]:
    """Slices that cannot be measured: no test rows, rephrased rows that equal the original, a slice that is the target."""
    problems: list[Problem] = []
    for stage in plan.stages:
        where = f"stages[{stage.index - 1}].slices"
        if stage.slices.every and plan.config.eval.tasks == "none":
            problems.append(Problem(where, "nothing is scored in this run (eval.tasks: none)", "set eval.tasks: seen"))
        own = {task.name for task in stage.tasks}
        for key in ("neighbourhood", "rephrased", "retention"):
            for task in getattr(stage.slices, key):
                if not task.rows.get("test"):
                    what = "has no test rows, so the slice cannot be measured"
                    problems.append(Problem(f"{where}.{key} {task.recipe}", what, "add a test source to the recipe"))
                if task.name in own:
                    fix = "name a recipe of another task"
                    problems.append(Problem(f"{where}.{key} {task.recipe}", "is what the stage trains", fix))
        problems += _equal(stage, where)
    return problems


def _equal(stage: Stage, where: str) -> list[Problem]:
    """Rephrased rows that ask what a test row of the stage asks, in the same words."""
    if not stage.slices.rephrased:
        return []
    asked = {_question(row): row for task in stage.tasks for row in DataFolder.open(task.folder).rows("test")}
    rows = [row for task in stage.slices.rephrased for row in DataFolder.open(task.folder).rows("test")]
    same = [row for row in rows if _question(row) in asked]
    fix = "ask it in other words, or leave the row out"
    found = [
        Problem(
            f"{where}.rephrased: {row.where}", f"asks the same as {asked[_question(row)].where}, word for word", fix
        )
        for row in same[:_NAMED]
    ]
    if len(same) > _NAMED:
        found.append(Problem(f"{where}.rephrased", f"{len(same) - _NAMED} more rows equal the original", fix))
    return found


def _question(row: Row) -> tuple[tuple[str, ...], str]:
    """Pictures by name and the conversation up to the answer, blanks and capitals aside."""
    return row.images, " ".join(" ".join(turn.text.lower().split()) for turn in row.turns[:-1])
