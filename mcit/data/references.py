"""Reference answers from a file beside the test rows, as TextVQA has them: ten per question, joined by question id.

File: ``{"data": [{"question_id": …, "answers": [text, …]}, …]}``, or the list alone; other keys are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcit.core.errors import DataError, Problem
from mcit.core.files import NOT_JSON
from mcit.core.types import Row


def with_references(items: Iterable[Row | Problem], path: Path, *, label: str) -> Iterator[Row | Problem]:
    """The rows with the file's answers as ``meta["answers"]``; a row without an entry becomes a problem.

    Raises DataError for a file that cannot be read, or that is not of this form.
    """
    known = _answers(path)
    for item in items:
        if isinstance(item, Problem):
            yield item
        elif item.id in known:
            yield replace(item, meta={**item.meta, "answers": known[item.id]})
        else:
            fix = "take the answers of the same release and split, or remove the row"
            yield Problem(item.where, f"{label} has no answers for question {item.id}", fix)


def _answers(path: Path) -> dict[str, list[str]]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), fix="check 'answers'") from None
    except NOT_JSON as error:
        raise DataError(f"is not JSON ({error})", where=str(path), fix="fetch the file again") from None
    entries = value.get("data") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise DataError("holds no list of answers under 'data'", where=str(path), fix="check 'answers'")
    known: dict[str, list[str]] = {}
    for number, entry in enumerate(entries, start=1):
        identity, answers = _entry(entry)
        if not identity or not answers:
            what = f"entry {number} has no question_id with a list of answers"
            raise DataError(what, where=str(path), fix="correct the entry")
        if known.setdefault(identity, answers) != answers:
            what = f"question {identity} stands there twice, with different answers"
            raise DataError(what, where=str(path), fix="remove one of the two")
    return known


def _entry(value: Any) -> tuple[str, list[str]]:
    if not isinstance(value, dict) or not isinstance(value.get("question_id"), (str, int)):
        return "", []
    answers = value.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        return "", []
    return str(value["question_id"]), answers
