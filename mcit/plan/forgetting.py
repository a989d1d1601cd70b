"""Forget stages in a plan: rows that are to be forgotten and retained at once, and what is scored because of them."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.errors import McitError, Problem
from mcit.core.optional import missing
from mcit.core.schema import KitConfig
from mcit.core.types import FORGET_DATA, SHARED, Plan, Row, Stage, TaskSpec
from mcit.data.folder import DataFolder
from mcit.data.forgetset import held_out, to_forget
from mcit.data.overlap import Twins, answers_of, overlapping
from mcit.data.rowbook import RowBook
from mcit.data.rowset import joined
from mcit.evals.filtering import name_of
from mcit.methods.check import FORGETS, has_to_forget
from mcit.methods.compose import make
from mcit.plan.gone import gone, unmeasured

_NAMED = 20
"""Overlapping rows that are named one by one; how many more there are is said."""
_AS_NAMED = "see to them as to those that are named"


def forget_problems(plan: Plan) -> list[Problem]:
    """Rows both forgotten and retained, rows a method cannot use, and what will not be measured or may undo a stage."""
    problems: list[Problem] = []
    if "guard" in map(name_of, plan.config.eval.filters) and not any(
        spec.name == "guard" for stage in plan.stages for spec in stage.methods
    ):
        fix = "list the method guard in a stage, or remove the filter"
        problems.append(Problem("eval.filters: guard", "no stage leaves a detector", fix))
    if plan.config.eval.kit is not None:
        problems += kit_problems(plan, plan.config.eval.kit)
    for stage in plan.stages:
        where = f"stages[{stage.index - 1}].forget"
        if not stage.forget:
            for key in FORGET_DATA[1:]:
                if getattr(stage, key):
                    what, fix = (
                        "is given, but the stage names nothing to forget",
                        "name recipes in forget, or remove it",
                    )
                    problems.append(Problem(f"stages[{stage.index - 1}].{key}", what, fix))
            continue
        for task in stage.forget:
            if not task.rows.get("train"):
                problems.append(Problem(f"{where} {task.recipe}", "has no training rows", "there is nothing to forget"))
            elif not task.rows.get("test"):
                what = "has no test rows, so what is forgotten will not be measured"
                problems.append(Problem(f"{where} {task.recipe}", what, "add a test source to the recipe", "note"))
        if gone(stage):
            problems.append(Problem(where, unmeasured(stage), "restore them to measure it", "note"))
            continue
        both = overlap(stage.forget, (*stage.tasks, *stage.decouple))
        problems += [
            Problem(
                f"{where}: {row.where}",
                f"is to be forgotten and retained at once ({other.where} of task {other.task})",
                "leave these rows out of the stage's recipe, for example with the transform select",
            )
            for row, other in both[:_NAMED]
        ]
        more = len(both) - _NAMED
        if more > 0:
            problems.append(Problem(where, f"{more} more rows are to be forgotten and retained at once", _AS_NAMED))
        problems += _held_out(stage, plan)
        problems += _unusable(stage, plan)
        problems += _learned_again(stage, plan)
    return problems


def overlap(forget: tuple[TaskSpec, ...], tasks: tuple[TaskSpec, ...]) -> list[tuple[Row, Row]]:
    """Training rows to forget that are also training rows of `tasks`."""
    return overlapping(to_forget(_rows(forget)), _rows(tasks))


def to_leave_out(
    stages: Sequence[tuple[TaskSpec, ...]], forgotten: tuple[TaskSpec, ...]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Training rows of the stages' recipes that a model which never saw `forgotten` is trained without, and the first of each
    recipe that asks the same and stays all the same.

    Rows that ask the same go whatever they answer, for another wording gives it away too. But where a stage taught another
    answer before the rows came, they overwrote it, as false answers do true ones (RESTOR, arXiv:2411.00204): that was not asked
    to go.
    """
    twins = Twins(to_forget(_rows(forgotten)))
    first: dict[str, tuple[int, TaskSpec]] = {}
    for index, tasks in enumerate(stages, start=1):
        for task in tasks:
            first.setdefault(task.recipe, (index, task))
    since: dict[tuple[str, str], int] = {}
    near: list[tuple[int, str, str, set[tuple[str, str]]]] = []
    for recipe, (index, task) in first.items():
        for row in _rows((task,)):
            same = {(other.task, other.where): answers_of(other) for other in twins.of(row)}
            since.update({key: index for key, said in same.items() if said == answers_of(row) and key not in since})
            if same:
                near.append((index, recipe, row.where, set(same)))
    out: dict[str, list[str]] = {}
    stay: dict[str, str] = {}
    for index, recipe, where, same_as in near:
        if all(since.get(key, 0) > index for key in same_as):
            stay.setdefault(recipe, where)
        else:
            out.setdefault(recipe, []).append(where)
    return {recipe: sorted(set(rows)) for recipe, rows in out.items()}, stay


def _rows(tasks: tuple[TaskSpec, ...]) -> Sequence[Row]:
    return joined([DataFolder.open(task.folder).rows("train") for task in tasks])


def _held_out(stage: Stage, plan: Plan) -> list[Problem]:
    """Rows held out that the stage forgets, or that some stage trains on."""
    where, forgotten = f"stages[{stage.index - 1}].holdout", _rows(stage.forget)
    rows = joined([_rows(stage.holdout), held_out(forgotten)])
    both = [(row, other, "forgotten") for row, other in overlapping(rows, to_forget(forgotten))]
    for s in plan.stages if len(rows) else ():
        both += [(row, other, f"trained on in stage {s.name}") for row, other in overlapping(rows, _rows(s.tasks))]
    return [
        Problem(f"{where}: {row.where}", f"is held out and {how} ({other.where})", "leave it out of one of the two")
        for row, other, how in both[:_NAMED]
    ] + (
        [Problem(where, f"{len(both) - _NAMED} more rows are held out and used", _AS_NAMED)]
        if len(both) > _NAMED
        else []
    )


def _unusable(stage: Stage, plan: Plan) -> list[Problem]:
    """What the methods that read rows to forget say about the rows, before weights are loaded."""
    earlier = [task for s in plan.stages[: stage.index] for task in s.tasks]
    problems: list[Problem] = []
    sizes: dict[str, int] = {}
    counted: set[str] = set()
    for i, spec in enumerate(stage.methods):
        method, where = make(spec), f"stages[{stage.index - 1}].methods[{i}] ({spec.name})"
        if has_to_forget(method.claims) and all(task.rows.get("train") for task in stage.forget):
            try:
                opened = method.streams(RowBook(earlier, stage, plan.stages[: stage.index - 1]))
            except McitError as error:
                problems += [Problem(f"{where}: {p.where}", p.what, p.fix, p.level) for p in error.problems]
                continue
            for name in sorted(SHARED & opened.keys()):
                size = sizes.setdefault(name, opened[name].per_step) or opened[name].per_step
                sizes[name] = size
                if opened[name].per_step not in (0, size):
                    what = f"reads {opened[name].per_step} rows of stream '{name}' per step, another method {size}"
                    problems.append(Problem(where, what, f"set per_step: {size}, as they read the same rows"))
            for name in sorted((FORGETS & opened.keys()) - counted):
                read = stage.steps * opened[name].per_step // method.claims.groups.get(name, 1)
                if 0 < read < len(opened[name].rows):
                    counted.add(name)
                    what = (
                        f"reads {read} of {len(opened[name].rows)} rows to forget in {stage.steps} steps, and no others"
                    )
                    fix = (
                        "raise per_step, max_steps or epochs (an epoch is one pass over the retained rows) to read all"
                    )
                    problems.append(Problem(where, what, fix, "note"))
    return problems


def _learned_again(stage: Stage, plan: Plan) -> list[Problem]:
    """A later stage that trains on rows forgotten here, which may be meant."""
    notes = []
    for later in plan.stages[stage.index :]:
        again = overlap(stage.forget, later.tasks)
        if again:
            what = f"trains on {len(again)} rows that stage {stage.name} forgets, such as {again[0][0].where}"
            notes.append(Problem(f"stages[{later.index - 1}].recipe", what, "leave them out, if not meant", "note"))
    return notes


# ---- the kit ----------------------------------------------------------------------------------------------------------
def kit_problems(plan: Plan, config: KitConfig) -> list[Problem]:
    """What keeps the forgetting kit from being measured: no stage that forgets, no holdout, a pool, absent libraries."""
    problems = missing("rouge_score", where="eval.kit") + missing("scipy", where="eval.kit")
    stages = [stage for stage in plan.stages if stage.forget]
    if stages and all(map(gone, stages)):
        fix = "restore them, or leave out the kit"
        problems.append(
            Problem("eval.kit", "the data of every request were deleted: there is nothing to measure", fix, "note")
        )
    if not stages:
        problems.append(
            Problem("eval.kit", "no stage forgets anything", "remove it, or name recipes in a stage's forget")
        )
    if plan.router is not None:
        fix = "remove eval.kit: forgetting is measured with one set of weights"
        problems.append(Problem("eval.kit", "the run keeps a pool of adapters, chosen per row", fix))
    if config.membership:
        problems += missing("sklearn", where="eval.kit.membership")
    for stage in (s for s in stages if not gone(s)) if config.membership else ():
        held = sum(task.rows.get("train", 0) for task in stage.holdout) or len(held_out(_rows(stage.forget)))
        if not held and not any(task.rows.get("test") for task in stage.forget):
            problems.append(
                Problem(
                    f"stages[{stage.index - 1}].holdout",
                    "membership is asked for, but there are no rows that were never trained to compare with",
                    "name a recipe in holdout, add test rows to the recipe in forget, or set eval.kit.membership: []",
                )
            )
    return problems


# ---- scoring ---------------------------------------------------------------------------------------------------------
def forget_due(plan: Plan, after: int) -> tuple[TaskSpec, ...]:
    """What forget stages want scored after so many stages: what is forgotten, just before its stage and ever after; and
    what a stage retains, just before it."""
    wanted: dict[str, TaskSpec] = {}
    for stage in plan.stages:
        below = plan.below(stage.index)
        if stage.forget and after == below:
            wanted.update({task.name: task for task in stage.tasks})
        if after >= below:
            wanted.update({task.name: task for task in stage.forget if not task.gone})
    return tuple(wanted.values())
