"""Questions and answers about pictures with a model as it is: greedy, through its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mcit.core.errors import DataError
from mcit.core.types import JsonDict, Row, Turn
from mcit.data.encode import Encoder
from mcit.data.images import open_image
from mcit.data.placeholder import PLACEHOLDER
from mcit.evals.generator import Sharing, greedy
from mcit.memory.prompt import Measure


class History(Protocol):
    """What of a dialogue the model sees. Turns are user and assistant in turn, without marks for pictures."""

    def before(self, turns: tuple[Turn, ...], question: str, measure: Measure) -> tuple[tuple[Turn, ...], str]:
        """The turns that go before a question, and the question as it is asked. `turns` are those of this dialogue so far."""

    def after(self, question: str, answer: str) -> None:
        """A question of the user, word for word, was answered."""


class Whole:
    """All turns, however many there are."""

    def before(self, turns: tuple[Turn, ...], question: str, measure: Measure) -> tuple[tuple[Turn, ...], str]:
        """Everything as it is."""
        return turns, question

    def after(self, question: str, answer: str) -> None:
        """Nothing to keep."""


def check_pictures(images: Sequence[Path]) -> None:
    """What can be said of pictures before weights load. Raises DataError for one that is not there or does not open."""
    for image in images:
        if not image.is_file():
            raise DataError("there is no such picture", where=str(image), fix="give the path of a picture")
        open_image(image, where="--image")


class Chat:
    """A dialogue about pictures, which stand in the first user turn that is shown; `history` chooses what is."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        *,
        device: torch.device,
        images: Sequence[Path] = (),
        bf16: bool = False,
        history: History | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        """Raises DataError for a picture that is not there or does not open."""
        check_pictures(images)
        self._model, self._encoder, self._device, self._bf16 = model, encoder, device, bf16
        self._measure = encoder.without_limit()
        self._images = [image.resolve() for image in images]
        self._history = history or Whole()
        self._sharing = sharing or Sharing(tokens=None, share=True)
        self._turns: tuple[Turn, ...] = ()

    def ask(self, question: str, *, max_new_tokens: int) -> JsonDict:
        """``text``, ``tokens`` and ``truncated`` of the answer. Raises DataError for a picture that does not open, and for a
        dialogue that is longer than what the model reads at once.
        """
        turns, asked = self._history.before(self._turns, question, self)
        try:
            answer = self._answer(self._row(turns, asked), max_new_tokens)
        except DataError:
            limit = self._encoder.max_length
            if limit is None or (length := self.prompt(turns, asked)) <= limit:
                raise
            what = f"the {'dialogue' if turns else 'question'} takes {length} tokens, the model reads {limit} at once"
            fix = "begin anew; --memory DIR keeps every prompt within that" if turns else "ask in fewer words"
            raise DataError(what, where="chat:question", fix=fix) from None
        self._turns = (*self._turns, Turn("user", question), Turn("assistant", answer["text"]))
        self._history.after(question, answer["text"])
        return answer

    def complete(self, request: str, *, max_new_tokens: int) -> str:
        """What the model says to a request outside of the dialogue, without pictures."""
        row = Row("request", (), (Turn("user", request), Turn("assistant", "")), "chat", "chat")
        text: str = self._answer(row, max_new_tokens)["text"]
        return text

    def prompt(self, turns: tuple[Turn, ...], question: str) -> int:
        """Tokens of a whole prompt, pictures and template included."""
        return len(self._measure.prompt(self._row(turns, question)).input_ids_T)

    def text(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._encoder.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _row(self, turns: tuple[Turn, ...], question: str) -> Row:
        first, *rest = (*turns, Turn("user", question))
        shown = Turn(first.role, f"{PLACEHOLDER}\n" * len(self._images) + first.text)
        root = self._images[0].anchor if self._images else ""
        names = tuple(str(image.relative_to(image.anchor)) for image in self._images)
        return Row("question", names, (shown, *rest, Turn("assistant", "")), "chat", "chat", root=root)

    def _answer(self, row: Row, max_new_tokens: int) -> JsonDict:
        with (
            greedy(self._model, self._encoder, max_new_tokens=max_new_tokens, **self._sharing) as generator,
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            (answer,) = generator.answer([row], device=self._device)
        return {key: answer[key] for key in ("text", "tokens", "truncated")}
