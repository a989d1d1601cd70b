"""What must hold before answers can be scored: scorers and styles exist, test rows have what the published rule needs."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core import lookup
from mcit.core.errors import DataError, Problem
from mcit.core.optional import missing
from mcit.core.types import Plan, TaskSpec
from mcit.evals.known import unknown_scorer, unknown_style
from mcit.plan.preflight import make_encoder, sampled

_LOOKED_AT = 2_000
"""Test rows of a task whose form is looked at."""


def scoring_problems(plan: Plan) -> list[Problem]:
    """Scorers and answer styles of the recipes that do not exist, and test rows that the scorer cannot judge.

    The latter is a note where the matrix takes the fixed rule.
    """
    tasks = (*plan.tasks, *(t for t in plan.forget_tasks if not t.gone), *plan.slice_tasks)
    problems = [*_backend_problems(plan), *_option_problems(plan, tasks)]
    for task in tasks:
        scorer, style = unknown_scorer(task.scorer, task.recipe), unknown_style(task.style, task.recipe)
        problems += scorer or _gold_problems(task, plan)
        problems += style or (_form_notes(task, plan) if plan.config.eval.tasks != "none" else [])
    return problems


def _form_notes(task: TaskSpec, plan: Plan) -> list[Problem]:
    """Notes: a task without test rows; right answers whose form the task's own style calls wrong."""
    from mcit.data.folder import DataFolder
    from mcit.evals.predictions import gold_of
    from mcit.evals.style import STYLES, format_valid

    if not task.rows.get("test"):
        fix = "add a source with split: test to the recipe, or leave the task out of eval.tasks"
        return [Problem(f"{task.recipe}: test", "has no rows, so the task is never scored", fix, "note")]
    rows = DataFolder.open(task.folder).rows("test")[: min(plan.config.eval.rows or _LOOKED_AT, _LOOKED_AT)]
    bad = []
    for row in rows:
        style = row.style if row.style and row.style in STYLES else task.style
        if not format_valid(row.answer, style, {**gold_of(row), "question": row.question}):
            bad.append((row, style))
    if not bad:
        return []
    row, style = bad[0]
    what = f"{len(bad)} of {len(rows)} answers lack the form of their style, the first {row.answer[:60]!r} that of '{style}'"
    fix = "correct the answers, or the style of the rows (`style:` of the source, eval.style of the recipe)"
    return [Problem(f"{task.recipe}: {row.where}", what, fix, "note")]


def _backend_problems(plan: Plan) -> list[Problem]:
    """What another backend for answers cannot do."""
    config, where = plan.config, "eval.backend: vllm"
    if config.eval.backend == "own" or config.eval.tasks == "none":
        return []
    problems = missing("vllm", where=where)
    if config.base.dtype in ("nf4", "int8"):
        what = f"takes whole weights, and base.dtype is {config.base.dtype}"
        problems.append(Problem(where, what, "set base.dtype: bf16, or eval.backend: own"))
    if any(stage.adapter.carry in ("keep", "stack", "pool") for stage in plan.stages):
        what = "takes whole weights, and adapters that are kept or stacked are not merged"
        problems.append(Problem(where, what, "set adapter.carry: merge in every stage, or eval.backend: own"))
    return problems


def _option_problems(plan: Plan, tasks: Sequence[TaskSpec]) -> list[Problem]:
    """Settings that do not go with choosing, and tasks without anything to choose: notes, unless there is no other."""
    from mcit.evals.options import chooses, none_chooses, setting_problems

    config = plan.config.eval
    if config.options == "generate" or config.tasks == "none":
        return []
    if any(lookup.missing("evals.scorers", task.scorer, where="") for task in tasks):
        return []
    if problems := setting_problems(config):
        return problems
    without = [task for task in tasks if not chooses(task, rows=config.rows)]
    if len(without) == len(tasks):
        return [none_chooses(tasks)]
    what = "no test row has options that its scorer lets choose among: answers are written"
    fix = "nothing, or see `eval.options` in docs/scorers.md"
    return [Problem(f"{task.recipe}: eval.options", what, fix, "note") for task in without]


def option_notes(plan: Plan) -> list[Problem]:
    """Of each task how many sampled test rows have an option that cannot be an answer of the model: these are written."""
    config, out = plan.config.eval, []
    if config.options == "generate" or config.tasks == "none":
        return []
    from mcit.data.folder import DataFolder
    from mcit.evals.choosing import as_answer
    from mcit.evals.options import chooser, choosing

    encoder = make_encoder(plan)
    for task in (*plan.tasks, *(t for t in plan.forget_tasks if not t.gone), *plan.slice_tasks):
        if not task.rows.get("test"):
            continue
        options, refused = chooser(choosing(task)), []
        rows = sampled(DataFolder.open(task.folder).rows("test")[: config.rows])
        for row in rows:
            try:
                for text in options(row):
                    as_answer(encoder, text, row)
            except DataError as error:
                refused.append(error)
        if refused:
            some = f"{len(refused)} of {len(rows)} rows looked at"
            what = f"{some} have an option that cannot be an answer, so that theirs is written"
            where = f"{task.recipe}: {refused[0].where}"
            out.append(Problem(where, f"{what}, the first: {refused[0].what}", "change the option's words", "note"))
    return out


def _gold_problems(task: TaskSpec, plan: Plan) -> list[Problem]:
    """The first test row whose gold the published rule cannot take, and how many there are."""
    from mcit.data.folder import DataFolder
    from mcit.evals.predictions import gold_of
    from mcit.evals.score import load_scorer
    from mcit.evals.scorers.base import Scorer

    scorer = load_scorer(task.scorer)
    if scorer.requires and (absent := missing(scorer.requires, where=f"{task.recipe}: eval.scorer")):
        return absent
    if (
        type(scorer).gold_problem is Scorer.gold_problem
        or not task.rows.get("test")
        or plan.config.eval.tasks == "none"
    ):
        return []
    rows = DataFolder.open(task.folder).rows("test")[: plan.config.eval.rows]
    bad = [(row, what) for row in rows if (what := scorer.gold_problem({**gold_of(row), "question": row.question}))]
    if not bad:
        return []
    row, what = bad[0]
    more = f" (and {len(bad) - 1} more of {len(rows)} rows)" if len(bad) > 1 else ""
    fix = f"see scorer '{task.scorer}' in docs/scorers.md, choose another one, or set eval.mode: fixed"
    where = f"{task.recipe}: {row.where}"
    return [Problem(where, f"{what}{more}", fix, "problem" if plan.config.eval.mode == "strict" else "note")]
