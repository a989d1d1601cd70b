"""What the rows of a split have in common: answers that outweigh the others, answers too long, the cue of the questions."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mcit.core.errors import Problem
from mcit.core.types import Row

LONG_ANSWER = 1_000
"""Characters, about 256 tokens."""
_ONE_SIDED = 0.6
_SHORT_STYLES = frozenset({"letter", "word", "name", "yes_no", "phrase", "box"})
_FEW_ANSWERS = frozenset({"yes_no", "letter"})
_MOST_CUES = 2_000
_SAID = 0.1
"""Share of questions with a cue below which a split is said to lack it."""
_OPTION = re.compile(r"\(?[A-Z][.):]")
_LOOKED_AT = 1_000


@dataclass
class Tally:
    """Counts over rows, kept small whatever their number."""

    rows: int = 0
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    """By style, where a style has few possible answers."""
    cues: Counter[str] = field(default_factory=Counter)
    """Last lines of questions of several lines; those that are rare among many are forgotten."""
    long: Counter[str] = field(default_factory=Counter)
    """Answers that are too long, by style."""
    example: dict[str, tuple[str, int]] = field(default_factory=dict)
    """A row with one, and its characters, by style."""

    def add(self, row: Row) -> None:
        """Count a row."""
        self._count(row, 1)
        if row.style in _SHORT_STYLES and len(row.answer) > LONG_ANSWER:
            self.example.setdefault(row.style, (row.where, len(row.answer)))
        if len(self.cues) > _MOST_CUES:
            self.cues = Counter({cue: count for cue, count in self.cues.items() if count > 1})
            if len(self.cues) > _MOST_CUES // 2:
                self.cues = Counter(dict(self.cues.most_common(_MOST_CUES // 2)))

    def remove(self, row: Row) -> None:
        """Take a row back that was counted."""
        self._count(row, -1)

    def _count(self, row: Row, by: int) -> None:
        self.rows += by
        if row.style in _SHORT_STYLES:
            answer = row.answer
            if row.style in _FEW_ANSWERS:
                self.answers.setdefault(row.style, Counter())[answer.lower() if len(answer) < 8 else "…"] += by
            if len(answer) > LONG_ANSWER:
                self.long[row.style] += by
        lines = row.question.strip().rsplit("\n", 1)
        if len(lines) > 1 and not _OPTION.match(lines[1].strip()):
            self.cues[lines[1].strip()] += by

    @property
    def cue(self) -> str:
        """The last line that most questions share; empty if there is none. A single question shares nothing."""
        if not self.cues:
            return ""
        cue, count = self.cues.most_common(1)[0]
        return cue if count > 1 and count * 2 > self.rows else ""


def one_sided(train: Tally) -> list[Problem]:
    """Styles of which one answer makes up more than 60 %."""
    out = []
    for style, answers in sorted(train.answers.items()):
        total = sum(answers.values())
        if total >= 10:
            answer, count = answers.most_common(1)[0]
            if count > _ONE_SIDED * total:
                what = f"{100 * count / total:.0f} % of the {style} answers are '{answer}'"
                out.append(Problem("train", what, "balance the answers, or compare scores with the constant answer"))
    return out


def long_answers(tally: Tally) -> list[Problem]:
    """Answers far longer than their style allows, one problem for each style."""
    out = []
    for style, count in sorted(tally.long.items()):
        if count > 0:
            where, characters = tally.example[style]
            more = f"; so long are {count} answers" if count > 1 else ""
            what = f"the answer has {characters} characters in style '{style}'{more}"
            out.append(Problem(where, what, "check the style"))
    return out


def cue_differs(train: Tally, test: Tally, rows: Mapping[str, Sequence[Row]]) -> list[Problem]:
    """The last line of most questions of one split says how to answer; those of the other must say the same somewhere.

    `rows` are those of both splits, of which some are read where the counts alone do not show it.
    """
    if not train.rows or not test.rows:
        return []
    for cue, split, other, counts in ((train.cue, "train", "test", test), (test.cue, "test", "train", train)):
        if not cue or counts.cues[cue] >= _SAID * counts.rows:
            continue
        drawn = random.Random(0).sample(range(len(rows[other])), min(_LOOKED_AT, len(rows[other])))
        share = sum(cue in rows[other][place].question for place in drawn) / len(drawn)
        if share < _SAID:
            what = f"most questions of {split} end with {cue!r}, and {100 * share:.0f} % of those of {other} hold that"
            return [Problem(other, what, "use one wording (`cue:` of a source): another cue alone costs many points")]
    return []


def unexpected(split: str, rows: int, number: int) -> list[Problem]:
    """Another number of rows than the recipe says; zeros at its end are taken as rounded."""
    zeros = len(str(number)) - len(str(number).rstrip("0"))
    if abs(rows - number) <= 10**zeros // 2:
        return []
    what = f"has {rows} rows, the recipe expects {number}"
    return [Problem(split, what, "check that the file is whole and of this release, or correct `expect`")]
