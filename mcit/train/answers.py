"""Answers of the model that a stage starts with, made before training and kept with the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mcit.core.files import digest_of
from mcit.core.types import JsonDict, Row
from mcit.engine import world
from mcit.evals.generator import Sharing, greedy
from mcit.evals.predictions import batches
from mcit.evals.refusing import is_refusal
from mcit.train.blobs import Blobs

_BATCH = 16


class StartAnswers:
    """Greedy answers to any rows; the same ones after a restart, and on any number of ranks."""

    def __init__(
        self,
        model: Any,
        encoder: Any,
        *,
        identity: JsonDict,
        device: torch.device,
        folder: Path | None,
        sharing: Sharing,
    ) -> None:
        """`identity` is what the weights depend on; without a `folder` answers live as long as this object."""
        self._model, self._encoder, self._identity, self._device = model, encoder, identity, device
        self._folder, self._sharing = folder, sharing
        self._blobs: Blobs | None = None

    def __call__(self, rows: Sequence[Row], max_new_tokens: int) -> list[str]:
        """The answer to each row's question; empty where the model refuses or says nothing."""
        asked = digest_of([[r.task, r.id, list(r.images), [[t.role, t.text] for t in r.turns[:-1]]] for r in rows])
        fingerprint = {**self._identity, "rows": asked, "max_new_tokens": max_new_tokens, "version": 1}
        self._blobs = self._blobs or Blobs(self._folder)
        blob = self._blobs.open("answers", fingerprint, lambda: ({}, {"answers": self._make(rows, max_new_tokens)}))
        return ["" if is_refusal(text) else text for text in blob.index["answers"]]

    def _make(self, rows: Sequence[Row], max_new_tokens: int) -> list[str]:
        """Batches of like length, each answered by one rank."""
        groups, mine = batches(rows, _BATCH), dict[int, str]()
        with greedy(self._model, self._encoder, max_new_tokens=max_new_tokens, **self._sharing) as generator:
            for group in groups[world.rank() :: world.size()]:
                made = generator.answer([rows[place] for place in group], device=self._device)
                mine |= dict(zip(group, (answer["text"].strip() for answer in made), strict=True))
        found = (
            mine if world.size() == 1 else {int(k): v for part in world.gather_objects(mine) for k, v in part.items()}
        )
        return [found[place] for place in range(len(rows))]
