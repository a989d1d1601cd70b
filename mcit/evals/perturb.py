"""Wrong and reworded answers of a row for the truth ratio: the data's own, else made from other entities of the recipe."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mcit.core.types import Row


@dataclass(frozen=True)
class Truth:
    """Answers that are compared with the right one."""

    paraphrased: str
    """The right answer in other words; the answer itself where there are no others."""
    perturbed: tuple[str, ...]
    """Wrong answers; empty where none can be made."""
    made: bool
    """Whether the wrong answers were made from other entities, not given by the data."""
    own: bool
    """Whether the answer stands for its own paraphrase."""


def truth_of(row: Row, pool: Iterable[str], *, count: int, seed: int) -> Truth:
    """``meta.paraphrased`` and ``meta.perturbed`` of the row; else another of its ``meta.answers``, and answers of a pool.

    The pool's answers are drawn by the seed and the row's id, without any that the row accepts.
    """
    right = {_plain(text) for text in (row.answer, *_texts(row, "answers"), *_texts(row, "paraphrased"))}
    reworded = next(
        (t for t in (*_texts(row, "paraphrased"), *_texts(row, "answers")) if _plain(t) != _plain(row.answer)), None
    )
    wrong = _texts(row, "perturbed")
    made = not wrong
    if made:
        others = sorted({text for text in pool if _plain(text) not in right})
        wrong = tuple(random.Random(f"{seed}/{row.id}").sample(others, min(count, len(others))))
    return Truth(reworded or row.answer, wrong, made, reworded is None)


def answered(row: Row, text: str, mark: str) -> Row:
    """The row with another last answer, and an id that says so."""
    return replace(row, id=f"{row.id}#{mark}", turns=(*row.turns[:-1], replace(row.turns[-1], text=text)))


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value = row.meta.get(key)
    if isinstance(value, str):
        return (value,)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, Sequence) else ()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
