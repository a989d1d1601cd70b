"""Which foreign styles of which task a rule can write, and the rules of the data sets of CoIN.

A cell is one style of one kind of task. `choices` (ScienceQA) proposes the row's other choices and answers with the
text of the right one. `classes` (ImageNet) draws from the class names of the data set. `boxes` (Grounding) takes other
boxes. Kinds of the bundled tasks are in `mcit.data.asd.demo`. A cell without a rule needs a model's answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcit.core.types import Row
from mcit.data.asd.assemble import OPTIONS, Content
from mcit.data.asd.boxes import wrong_boxes
from mcit.data.asd.exchange import Exchange

NEEDED = {"yn": 1, "mcq": OPTIONS - 1}
"""Wrong answers that a style needs."""


@dataclass(frozen=True)
class Corpus:
    """The training rows as rules see them."""

    rows: Sequence[Row]
    exchanges: Sequence[tuple[Exchange, ...]]
    """Of each row; empty for a row that cannot be taken apart."""
    within: str = ""
    """Key of a row's meta: wrong answers come from rows with the same value, as far as there are enough."""

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Every answer of the data set, once."""
        return tuple(sorted({part.answer for parts in self.exchanges for part in parts}))

    @cached_property
    def answer_list(self) -> tuple[str, ...]:
        """Every answer as often as it occurs."""
        return tuple(part.answer for parts in self.exchanges for part in parts)

    @cached_property
    def answers_within(self) -> Mapping[object, tuple[str, ...]]:
        """Every answer once, by the value of the rows' `within`."""
        found: dict[object, set[str]] = {}
        for row, parts in zip(self.rows, self.exchanges, strict=True):
            found.setdefault(str(row.meta.get(self.within)), set()).update(part.answer for part in parts)
        return {key: tuple(sorted(answers)) for key, answers in found.items()}

    @cached_property
    def boxes(self) -> Mapping[tuple[str, tuple[str, ...]], tuple[str, ...]]:
        """Answers by (image root, images)."""
        found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for row, parts in zip(self.rows, self.exchanges, strict=True):
            found.setdefault((row.root, row.images), []).extend(part.answer for part in parts if part.is_box)
        return {key: tuple(boxes) for key, boxes in found.items()}


Rule = Callable[[Row, Exchange, Corpus, random.Random], Content | None]
"""Content for one question, drawn with the row's own seed; None where the row does not allow it."""
Cells = Mapping[str, Rule]
"""Rules by style."""


def contains(one: str, other: str) -> bool:
    """Whether either answer is part of the other, apart from case and punctuation."""
    left, right = (f" {' '.join(_plain(text))} " for text in (one, other))
    return left in right or right in left


def different(gold: str, pool: Sequence[str], count: int, draw: random.Random) -> tuple[str, ...] | None:
    """`count` drawn answers of which none is part of the right one or of another; None if there are too few."""
    found: list[str] = []
    for answer in draw.sample(pool, len(pool)):
        if not any(contains(answer, other) for other in (gold, *found)):
            found.append(answer)
            if len(found) == count:
                return tuple(found)
    return None


def among(style: str, gold: str, pool: Sequence[str], draw: random.Random) -> Content | None:
    """A ``yn`` or ``mcq`` question with wrong answers drawn from `pool`."""
    wrong = different(gold, pool, NEEDED[style], draw)
    return None if wrong is None else Content(distractors=wrong)


# ---- ScienceQA ------------------------------------------------------------------------------------------------------
def other_choice(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
    """Propose another choice of the row; no choice between yes and no, which would ask whether "no" is right."""
    if exchange.is_yes_no:
        return None
    others = [option for option in exchange.options if option != exchange.answer]
    return Content(distractors=(draw.choice(others),)) if others else None


def choice_text(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
    """Answer with the right choice instead of its letter."""
    return Content(text=exchange.answer)


# ---- ImageNet -------------------------------------------------------------------------------------------------------
def other_class(style: str) -> Rule:
    """Wrong answers drawn uniformly from the other class names, from the row's own group first where one is named."""

    def rule(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
        if exchange.is_yes_no:
            return None
        if corpus.within:
            near = among(style, exchange.answer, corpus.answers_within[str(row.meta.get(corpus.within))], draw)
            if near is not None:
                return near
        return among(style, exchange.answer, corpus.answers, draw)

    return rule


# ---- Grounding ------------------------------------------------------------------------------------------------------
def other_box(style: str) -> Rule:
    """Other annotated boxes of the picture first, then boxes of the same size elsewhere."""

    def rule(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
        if not exchange.is_box:
            return None
        wrong = wrong_boxes(exchange.answer, corpus.boxes[row.root, row.images], NEEDED[style], draw)
        return None if wrong is None else Content(distractors=wrong)

    return rule


CELLS: dict[str, Cells] = {
    "none": {},
    "choices": {"yn": other_choice, "short": choice_text},
    "classes": {"yn": other_class("yn"), "mcq": other_class("mcq")},
    "boxes": {"yn": other_box("yn"), "mcq": other_box("mcq")},
}


def find_cells(corpus: Corpus, native: str) -> str:
    """The kind of task by its rows: answers that are letters, boxes, or the ``class`` of the row's meta; else none."""
    found = [(row, parts) for row, parts in zip(corpus.rows, corpus.exchanges, strict=True) if parts]
    if native == "mcq" and found:
        return "choices"
    if native == "short" and found:
        if all(part.is_box for _, parts in found for part in parts):
            return "boxes"
        if all(row.meta.get("class") == part.answer for row, parts in found for part in parts):
            return "classes"
    return "none"


def _plain(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()
