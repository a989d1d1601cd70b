"""Rows of a forget stage beside those to forget: other answers, harmless pictures, rows held out; from columns or recipes.

A column is a key of a row's ``meta``: ``alternate`` (a text), ``decouple`` (``{"image": path, "answer": text}``, the path below
the row's own image root) and ``holdout`` (true). Rows of recipes are matched by id.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcit.core.errors import DataError, Problem
from mcit.core.types import Row, Turn
from mcit.data.images import resolve_below
from mcit.data.overlap import asked, pictures_of
from mcit.data.rowset import pick

_LOOKS = 1000
"""Retained rows that are drawn at most before a row counts as one that none fits."""
_NAMED = 20
"""Rows that are named one by one; how many more there are is said."""


def to_forget(rows: Sequence[Row]) -> Sequence[Row]:
    """Those that are not held out."""
    places = [place for place, row in enumerate(rows) if not row.meta.get("holdout")]
    return rows if len(places) == len(rows) else pick(rows, places)


def held_out(rows: Sequence[Row]) -> Sequence[Row]:
    """Those with ``meta.holdout``."""
    return pick(rows, [place for place, row in enumerate(rows) if row.meta.get("holdout")])


def with_alternates(rows: Sequence[Row], given: Sequence[Row]) -> list[Row]:
    """The rows with the answers of `given` rows of their id, or of their column. Raises DataError for rows without one."""
    return _paired(rows, given, "alternate", _alternate)


def decoupled(rows: Sequence[Row], given: Sequence[Row]) -> list[Row]:
    """The rows' questions about the pictures of `given` rows of their id, or of their column, with those rows' answers.

    Raises DataError for rows without one, or with one that shows the same picture.
    """
    return _paired(rows, given, "decouple", _decouple)


def answered(row: Row, text: str) -> tuple[Turn, ...]:
    """The row's turns with another answer. Raises DataError for a row with several answers."""
    if sum(turn.role == "assistant" for turn in row.turns) != 1:
        raise DataError("has several answers and one to replace them", where=row.where, fix="give one question per row")
    return (*row.turns[:-1], Turn("assistant", text))


def _paired(rows: Sequence[Row], given: Sequence[Row], key: str, make: Any) -> list[Row]:
    by_id = _by_id(rows, given, key) if len(given) else {}
    problems: list[Problem] = []
    out: list[Row] = []
    for row in rows:
        try:
            out.append(make(row, by_id.get(row.id), f"{row.where}: meta.{key}"))
        except DataError as error:
            problems += error.problems
    if problems:
        more = len(problems) - _NAMED
        rest = (
            [Problem(f"stage's {key}", f"{more} more rows cannot be paired", "as for those named")] if more > 0 else []
        )
        raise DataError.of([*problems[:_NAMED], *rest])
    return out


def _by_id(rows: Sequence[Row], given: Sequence[Row], key: str) -> dict[str, Row]:
    """Rows of recipes by id, which must be one row's to forget. Raises DataError where an id says nothing."""
    found: dict[str, Row] = {}
    for row in given:
        if row.id in found:
            what = f"id '{row.id}' of {key} is also that of {found[row.id].where}"
            raise DataError(what, where=row.where, fix="give each row its own id: rows are matched by it")
        found[row.id] = row
    if len({row.id for row in rows}) < len(rows):
        what = f"rows to forget share ids, so rows of {key} cannot be matched"
        raise DataError(what, where="forget", fix="write ids: number in the recipe's sources, or use a column")
    return found


def _alternate(row: Row, other: Row | None, where: str) -> Row:
    if other is not None:
        if asked(other) != asked(row):
            what = f"asks something else than row {row.where} to forget"
            raise DataError(what, where=other.where, fix="give the same question with another answer")
        return replace(row, turns=other.turns)
    text = row.meta.get("alternate")
    if not isinstance(text, str) or not text.strip():
        what = "has no alternate answer: no row of the stage's alternate has its id, nor has it meta.alternate"
        raise DataError(what, where=row.where, fix="add the row, or the column")
    return replace(row, turns=answered(row, text))


def _decouple(row: Row, other: Row | None, where: str) -> Row:
    if other is not None:
        if asked(other) != asked(row):
            what = f"asks something else than row {row.where} to forget"
            raise DataError(what, where=other.where, fix="ask the same about another picture")
        made = replace(row, turns=other.turns, images=other.images, root=other.root)
    else:
        made = replace(row, **dict(_column(row, where)))
    if made.images == row.images and made.root == row.root:
        raise DataError("its harmless picture is the picture to forget", where=row.where, fix="give another picture")
    return made


def _column(row: Row, where: str) -> Iterator[tuple[str, Any]]:
    given = row.meta.get("decouple")
    if not given:
        what = "has no harmless picture: no row of the stage's decouple has its id, nor has it meta.decouple"
        raise DataError(what, where=row.where, fix="add the row or the column, or let the stage make them")
    if not isinstance(given, Mapping) or not all(isinstance(given.get(k), str) for k in ("image", "answer")):
        raise DataError("is no image with an answer", where=where, fix='write {"image": path, "answer": text}')
    if len(row.images) != 1:
        raise DataError("one picture replaces another, but the row has not one", where=where, fix="use a recipe")
    if not Path(resolve_below(row.root, given["image"], where=where)).is_file():
        raise DataError(f"picture {given['image']} does not exist", where=where, fix="check the path")
    yield "images", (given["image"],)
    yield "turns", answered(row, given["answer"])


def made_decoupled(
    rows: Sequence[Row],
    retained: Sequence[Row],
    answer: Callable[[Sequence[Row]], list[str]],
    *,
    category: str,
    tries: int,
    seed: int,
) -> list[Row]:
    """What the rows to forget ask, about pictures of retained rows of another category, with what `answer` says of each.

    A picture that is to be forgotten, whatever is asked about it, is none to ask about.

    A row whose answers to `tries` pictures are all empty takes the harmless row of the next one that has one. Raises
    DataError for rows that no retained picture fits, or if every answer is empty.
    """
    harmful = {picture for row in rows for picture in pictures_of(row)}
    asked_of = [_elsewhere(row, retained, category, tries, seed, harmful) for row in rows]
    given = iter(answer([one for several in asked_of for one in several]))
    made: list[Row | None] = []
    for several in asked_of:
        said = [(one, text) for one, text in zip(several, [next(given) for _ in several], strict=True) if text]
        made.append(replace(said[0][0], turns=answered(said[0][0], said[0][1])) if said else None)
    usable = [row for row in made if row is not None]
    if not usable:
        what = "the model refuses every question about every harmless picture, so nothing can be decoupled"
        raise DataError(what, where="decouple", fix="give recipes in the stage's decouple")
    spare = itertools.cycle(usable)
    return [row if row is not None else next(spare) for row in made]


def _elsewhere(row: Row, retained: Sequence[Row], category: str, count: int, seed: int, harmful: Set[str]) -> list[Row]:
    """The row about pictures of `count` retained rows of another category, none of them `harmful`."""
    answered(row, "")  # one answer
    mine, draw = _category(row, category), random.Random(f"{seed}/decouple/{row.task}/{row.id}").random
    found: list[Row] = []
    for _ in range(_LOOKS if len(retained) and row.images else 0):
        other = retained[int(draw() * len(retained))]
        fits = len(other.images) == len(row.images) and _category(other, category) != mine
        if fits and not harmful & set(pictures_of(other)):
            found.append(replace(row, images=other.images, root=other.root))
        if len(found) == count:
            return found
    if not found:
        what = f"no retained row has {len(row.images)} picture(s) of another {category} that are not to be forgotten"
        raise DataError(what, where=row.where, fix="give a harmless picture in decouple, or change `category`")
    return found


def _category(row: Row, by: str) -> str:
    if by in ("answer", "task"):
        return row.answer if by == "answer" else row.task
    if by == "folder":
        return Path(row.images[0]).parent.name if row.images else ""
    key = by.removeprefix("meta.")
    if key not in row.meta:
        raise DataError(f"the row has no meta '{key}'", where=row.where, fix="change prompt_decouple's category")
    return str(row.meta[key])
