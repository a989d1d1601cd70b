"""Answers made outside a run (another engine, a harness, an API): scored by the run's own rules, beside its matrix.

File: one JSON object per line, or one list of them: ``{"question_id": … or "id": …, "text": … or "prediction": …}``; other keys
are left alone. Every test row that the run scores must be answered exactly once. Needs no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcit.core.config import suggestion
from mcit.core.errors import ConfigError, DataError, Problem, StateError
from mcit.core.files import NOT_JSON, read_given, sha256_bytes
from mcit.core.records import ScoreElsewhere
from mcit.core.types import JsonDict, Row
from mcit.data.folder import DataFolder
from mcit.evals.predictions import gold_of, read_predictions, write_predictions
from mcit.evals.score import score_predictions, write_score
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan

_IDS, _TEXTS = ("question_id", "id"), ("text", "prediction")
_SHOWN = 20
_GIVE = "give a file of answers in UTF-8"


def score_elsewhere(run: Path, file: Path, *, task: str | None, limit: int | None) -> tuple[Path, JsonDict]:
    """Score a file of answers to the first `limit` test rows of `task` into ``evals/elsewhere/<file's name>/<task>``.

    Returns the folder and the score. `task` may be None if the run has only one. Raises ConfigError for a task that the run
    does not have, DataError with the list of missing, unknown and repeated ids, StateError if the task's data has changed.
    """
    layout = RunLayout(run)
    plan = read_plan(layout)
    name = _task_of(plan, task)
    rows = _data_of(plan, name).rows("test")[:limit]
    data = _bytes_of(file)
    texts = _matched(_answers(data, file), rows, where=str(file))
    kind = plan["scorers"][name]
    lines = [
        {"id": row.id, "index": i, "question": row.question, "gold": gold_of(row), "text": texts[row.id]}
        | {"tokens": None, "truncated": None}
        for i, row in enumerate(rows)
    ]
    made = {"elsewhere": {"file": file.name, "sha256": sha256_bytes(data)}, "task": name, "rows": limit}
    folder = layout.elsewhere(file.stem) / name
    write_predictions(folder, lines, made)
    scored = score_predictions(read_predictions(folder), scorer=kind["scorer"], style=kind["style"], extra=made)
    write_score(folder, scored, model=ScoreElsewhere)
    return folder, scored.score


def read_answers(file: Path) -> list[tuple[str, str]]:
    """Pairs of id and text. Raises DataError naming every line that is none."""
    return _answers(_bytes_of(file), file)


def _bytes_of(file: Path) -> bytes:
    try:
        return read_given(file)
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=str(file), fix=_GIVE) from None


def _answers(data: bytes, file: Path) -> list[tuple[str, str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot be read ({error})", where=str(file), fix=_GIVE) from None
    whole = text.lstrip().startswith("[")
    try:
        lines = list(enumerate(json.loads(text), 1)) if whole else _lines(text)
    except NOT_JSON as error:
        raise DataError(
            f"is not JSON ({error})", where=str(file), fix="write one object per line, or one list"
        ) from None
    found, problems = [], []
    for number, value in lines:
        pair = _pair(value)
        if pair is None:
            what = "is no answer: an id and a text are needed"
            problems.append(Problem(f"{file}:{number}", what, f"write {_IDS[0]} and {_TEXTS[0]}"))
        else:
            found.append(pair)
    if problems:
        raise DataError.of(problems[:_SHOWN])
    return found


def _lines(text: str) -> list[tuple[int, Any]]:
    return [(number, json.loads(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _pair(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    identity = next((value[key] for key in _IDS if isinstance(value.get(key), (str, int))), None)
    text = next((value[key] for key in _TEXTS if isinstance(value.get(key), str)), None)
    return None if identity is None or text is None else (str(identity), text.strip())


def _matched(answers: Sequence[tuple[str, str]], rows: Sequence[Row], *, where: str) -> dict[str, str]:
    """Text by id. Raises DataError for ids that are missing, unknown or given twice, each with its list."""
    counts = Counter(identity for identity, _ in answers)
    wanted = {row.id for row in rows}
    found = {
        "has no answer for": [row.id for row in rows if row.id not in counts],
        "answers ids that are no test row of the task": [identity for identity in counts if identity not in wanted],
        "answers more than once": [identity for identity, count in counts.items() if count > 1],
    }
    problems = [
        Problem(where, f"{what}: {_listed(ids)} ({len(ids)}; {len(rows)} rows are scored)", "answer each row once")
        for what, ids in found.items()
        if ids
    ]
    if problems:
        raise DataError.of(problems)
    return dict(answers)


def _listed(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + rest


def _task_of(plan: JsonDict, task: str | None) -> str:
    names = list(plan["scorers"])
    if task is None and len(names) == 1:
        return names[0]
    if task is None or task not in names:
        what = f"no task '{task}' in this run" if task else f"the run has {len(names)} tasks, whose are these answers?"
        raise ConfigError(what, where="--task", fix=suggestion(task or "", names))
    return task


def _data_of(plan: JsonDict, task: str) -> DataFolder:
    """The task's data as the run had it. Raises StateError when it is not what it was."""
    from mcit.data.build import build
    from mcit.data.recipe import find_recipe, load_recipe

    for name, digest in plan["recipes"].items():
        recipe = load_recipe(find_recipe(name))
        if recipe.task == task:
            folder = DataFolder.open(build(recipe))
            if folder.digest == digest:
                return folder
            what = f"the data of '{task}' has changed since the run began"
            raise StateError(what, where=name, fix="restore recipe and files")
    raise StateError(f"no recipe of the run is for task '{task}'", where="plan.json", fix="restore the recipe")
