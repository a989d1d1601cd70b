"""A dialogue with a memory in a folder: what of both goes into a prompt, and what is kept of an answer."""

from __future__ import annotations

from collections.abc import Callable

from mcit.core.errors import DataError
from mcit.core.types import Turn
from mcit.data.encode import Encoder
from mcit.data.placeholder import PLACEHOLDER
from mcit.data.template import ChatTemplate
from mcit.memory.compact import WORDS, Summarise, cut
from mcit.memory.folder import MemoryFolder
from mcit.memory.memory import Hit, Recalled
from mcit.memory.prompt import BUDGET, Measure, fitted


class Remembering:
    """The history of a chat with a memory."""

    def __init__(self, folder: MemoryFolder, encoder: Encoder, *, budget: int = BUDGET, answer: int = 0) -> None:
        """`folder` is entered; `budget` counts tokens of a prompt of the model that `encoder` is of.

        A prompt also leaves room for an `answer` of so many tokens in what the model reads at once.
        """
        limit = encoder.max_length
        self._folder, self._budget = folder, budget if limit is None else min(budget, max(1, limit - answer))
        self._answer, self._limit = answer, limit if self._budget < budget else None
        self._template = ChatTemplate(encoder.processor)
        self._shown: tuple[Hit, ...] = ()

    def before(self, turns: tuple[Turn, ...], question: str, measure: Measure) -> tuple[tuple[Turn, ...], str]:
        """Recalled exchanges, the last turns, and the question with the summary in front; see `mcit.memory.prompt.fitted`.

        Raises DataError for a question that does not fit by itself.
        """
        if self._limit is not None and (alone := measure.prompt((), question)) > self._budget:
            read = f"of the {self._limit} that the model reads at once {self._answer} are for the answer"
            what, fix = f"the question alone takes {alone} tokens, and {read}", "ask in fewer words"
            if alone + 1 < self._limit:
                fix = f"ask in fewer words, or allow at most {self._limit - alone} with --max-new-tokens"
            raise DataError(what, where="chat:question", fix=fix)
        memory = self._folder.memory
        found = memory.recall(question)
        hits = tuple(Hit(h.place, h.cosine, h.turn, self._plain(h.question), self._plain(h.answer)) for h in found.hits)
        recalled = Recalled(tuple(self._plain(part) for part in found.summary), hits)
        kept, asked, self._shown = fitted(
            turns, question, recalled, said=memory.turns, budget=self._budget, measure=measure
        )
        return kept, asked

    def after(self, question: str, answer: str) -> None:
        """Into the folder."""
        self._folder.remember(question, answer, recalled=[hit.place for hit in self._shown])

    def _plain(self, text: str) -> str:
        """A text of a memory in which control tokens of this model and marks for pictures are only words."""
        while token := PLACEHOLDER if PLACEHOLDER in text else self._template.control_token(text):
            text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")
        return text


def by_model(complete: Callable[[str], str], *, words: int = WORDS) -> Summarise:
    """Summaries that the model itself writes, cut off after so many words."""

    def summarise(previous: str, text: str) -> str:
        known = f"Summary so far: {previous}\n" if previous else ""
        return (
            cut(complete(f"{known}New: {text}\nWrite one sentence that keeps every fact of both."), words) or previous
        )

    return summarise
