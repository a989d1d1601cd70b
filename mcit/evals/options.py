"""Which rows state the options of their answer, and who may choose among them (``eval.options: forward``). Needs no torch.

The style of a row says what its options are: those of `letter` are the letters of its choices, or those that its question
lists; of `yes_no` its choices, else yes and no, in lower case and with a capital, as a question does not say which is written;
of `word`, `name` and `phrase` its choices. No other row has any. The gold answer is not looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from mcit.core.errors import Problem
from mcit.core.schema import EvalConfig
from mcit.core.types import JsonDict, Row, TaskSpec
from mcit.data.folder import DataFolder
from mcit.evals.filtering import load_filters, name_of
from mcit.evals.filters.base import edits_scores, picks_rows, prepares
from mcit.evals.parse import stated_letters
from mcit.evals.predictions import gold_of
from mcit.evals.score import load_scorer
from mcit.evals.scorers.base import Gold
from mcit.evals.style import ALIASES, style_of

VERSION = 2
"""Goes up when options, or how one of them is chosen, change; answers of another version are made again."""
_WHERE = "eval.options: forward"
_YES_NO = ("yes", "no", "Yes", "No")

Options = Callable[[Row], Sequence[str]]
"""The options of a row, each once; none where its answer has to be written."""


def options_of(gold: Gold, style: str) -> tuple[str, ...]:
    """Answers that a row of this style (its own, if it has one, counts) states to choose among; empty if it states none."""
    style = style_of(gold, style)
    style = ALIASES.get(style, style)
    choices = gold.get("choices") or ()
    texts = [one.strip() for one in choices if isinstance(one, str) and one.strip()]
    stated = tuple(dict.fromkeys(texts)) if len(texts) == len(choices) else ()
    if style == "letter":
        found = tuple(stated_letters(gold))
    elif style == "yes_no":
        found = stated if {one.lower() for one in stated} == {"yes", "no"} else _YES_NO
    else:
        found = stated if style in ("word", "name", "phrase") else ()
    return found if len(found) > 1 else ()


def choosing(task: TaskSpec) -> JsonDict:
    """What of a task decides which of its rows are chosen: part of the identity of its answers."""
    return {"scorer_chooses": load_scorer(task.scorer).chooses, "style": task.style, "version": VERSION}


def chooser(settings: Mapping[str, object]) -> Options:
    """The options of each row, by what `choosing` gave."""
    if not settings["scorer_chooses"]:
        return _none
    return functools.partial(_of_row, style=str(settings["style"]))


def _none(row: Row) -> tuple[str, ...]:
    return ()


def _of_row(row: Row, *, style: str) -> tuple[str, ...]:
    return options_of({**gold_of(row), "question": row.question}, style)


def chooses(task: TaskSpec, *, rows: int | None) -> bool:
    """Whether any of the first `rows` test rows of a task would be answered by choosing."""
    if not task.rows.get("test") or not load_scorer(task.scorer).chooses:
        return False
    options = chooser(choosing(task))
    return any(options(row) for row in DataFolder.open(task.folder).rows("test")[:rows])


def none_chooses(tasks: Sequence[TaskSpec]) -> Problem:
    """Nothing of a run can be answered by choosing."""
    named = ", ".join(f"{task.name} (scorer {task.scorer})" for task in tasks)
    what = f"no test row of these tasks has options that its scorer lets choose among: {named}"
    return Problem(_WHERE, what, "set eval.options: generate, or give rows their style and choices (docs/scorers.md)")


def setting_problems(config: EvalConfig) -> list[Problem]:
    """What does not go with choosing: answers of another backend, and filters that act while an answer is written."""
    if config.options == "generate":
        return []
    problems = []
    if config.backend != "own":
        what = f"options are compared by the run's own model, and eval.backend is {config.backend}"
        problems.append(Problem(_WHERE, what, "set eval.backend: own, or eval.options: generate"))
    for spec, one in zip(config.filters, load_filters(config.filters), strict=True):
        if one.beams > 1 or edits_scores(one) or picks_rows(one) or prepares(one):
            what = f"filter '{name_of(spec)}' acts while an answer is written, and none is"
            problems.append(Problem(_WHERE, what, "leave the filter out, or set eval.options: generate"))
    return problems
