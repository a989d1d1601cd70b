"""What of a dialogue and its memory goes into a prompt of limited length. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mcit.core.errors import DataError
from mcit.core.types import Turn

if TYPE_CHECKING:  # a command line knows the budget without numpy
    from mcit.memory.memory import Hit, Recalled

BUDGET = 3500
"""Tokens of a prompt; HEMA keeps below it (arXiv:2504.16754, abstract)."""
SUMMARY = "Summary of the conversation so far:"


class Measure(Protocol):
    """Lengths in tokens of the model that will be asked."""

    def prompt(self, turns: tuple[Turn, ...], question: str) -> int:
        """A whole prompt, pictures and template included."""

    def text(self, text: str) -> int:
        """A text by itself."""


def fitted(
    turns: tuple[Turn, ...], question: str, memory: Recalled, *, said: int, budget: int, measure: Measure
) -> tuple[tuple[Turn, ...], str, tuple[Hit, ...]]:
    """Turns before the question, the question with the summary in front, and the hits that are among the turns.

    `turns` is the dialogue of this session, in which `said` is the memory's number of turns: what is in both is shown
    once. In this order, as far as `budget` tokens go: the question, the summary, recalled exchanges (best first, half of
    the room at most), the last exchanges of the dialogue. Recalled ones are shown as exchanges before those, in the order in
    which they happened. Raises DataError for a question that is longer by itself.
    """
    alone = measure.prompt((), question)
    if alone > budget:
        what = f"the question alone takes {alone} tokens of a prompt of {budget}"
        raise DataError(what, where="--budget", fix=f"allow {alone} or more, or ask in fewer words")
    asked = _with_summary(question, memory.summary)
    if measure.prompt((), asked) > budget:
        asked = question
    room = budget - measure.prompt((), asked)
    around = measure.prompt((Turn("user", "x"), Turn("assistant", "x")), asked) - measure.prompt((), asked)
    costs = {hit.place: around + measure.text(hit.question) + measure.text(hit.answer) for hit in memory.hits}
    kept: list[Hit] = []
    for hit in memory.hits:
        if sum(costs[one.place] for one in (*kept, hit)) <= room // 2:
            kept.append(hit)
    left = room - sum(costs[hit.place] for hit in kept)
    recent = 0
    while 2 * (recent + 1) <= len(turns):
        pair = turns[len(turns) - 2 * (recent + 1) :][:2]
        left -= around + sum(measure.text(turn.text) for turn in pair)
        if left < 0:
            break
        recent += 1
    while True:
        shown = tuple(hit for hit in kept if hit.turn < said - recent)
        before = (*_exchanges(shown), *turns[len(turns) - 2 * recent :])
        if measure.prompt(before, asked) <= budget:
            return before, asked, shown
        if recent:
            recent -= 1
        elif kept:
            kept.pop()
        else:
            return (), question, ()


def _exchanges(hits: tuple[Hit, ...]) -> tuple[Turn, ...]:
    ordered = sorted(hits, key=lambda hit: (hit.turn, hit.place))
    return tuple(turn for hit in ordered for turn in (Turn("user", hit.question), Turn("assistant", hit.answer)))


def _with_summary(question: str, summary: tuple[str, ...]) -> str:
    return "\n".join([f"{SUMMARY} {' '.join(summary)}", "", question]) if summary else question
