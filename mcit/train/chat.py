"""Questions and answers about pictures with a model as it is: greedy, through its own chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mcit.core.errors import DataError
from mcit.core.types import JsonDict, Row, Turn
from mcit.data.encode import Encoder
from mcit.data.placeholder import PLACEHOLDER
from mcit.evals.generate import greedy

History = Callable[[tuple[Turn, ...]], tuple[Turn, ...]]
"""Which of the turns so far go into the next prompt: user and assistant in turn, the first user turn with the pictures."""


class Chat:
    """A dialogue about pictures; `history` chooses what of it the model sees, by default all."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        *,
        device: torch.device,
        images: Sequence[Path] = (),
        bf16: bool = False,
        history: History = lambda turns: turns,
    ) -> None:
        """Raises DataError for a picture that is not there."""
        for image in images:
            if not image.is_file():
                raise DataError("there is no such picture", where=str(image), fix="give the path of a picture")
        self._model, self._encoder, self._device, self._bf16 = model, encoder, device, bf16
        self._images = [image.resolve() for image in images]
        self._history = history
        self._turns: tuple[Turn, ...] = ()

    def ask(self, question: str, *, max_new_tokens: int) -> JsonDict:
        """``text``, ``tokens`` and ``truncated`` of the answer. Raises DataError for a picture that does not open."""
        shown = "" if self._turns else f"{PLACEHOLDER}\n" * len(self._images)
        turns = (*self._history(self._turns), Turn("user", shown + question))
        root = self._images[0].anchor if self._images else ""
        names = tuple(str(image.relative_to(image.anchor)) for image in self._images)
        row = Row("question", names, (*turns, Turn("assistant", "")), "chat", "chat", root=root)
        with (
            greedy(self._model, self._encoder, max_new_tokens=max_new_tokens) as generator,
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            (answer,) = generator.answer([row], device=self._device)
        self._turns = (*self._turns, Turn("user", shown + question), Turn("assistant", answer["text"]))
        return answer
