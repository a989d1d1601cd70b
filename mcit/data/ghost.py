"""A row that nothing is learned from, to make a batch without images run what a batch with images runs.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mcit.core.types import Batch, Row, Sample
from mcit.data.encode import IGNORE, TOKEN_KEYS, Encoder
from mcit.data.streams import row_length


class Ghost:
    """Appends one unsupervised row with an image; outputs of the other rows stay where they are."""

    def __init__(self, sample: Sample, *, pad_id: int) -> None:
        self._sample, self._pad_id = sample, pad_id

    @classmethod
    def of(cls, rows: Iterable[Row], encoder: Encoder) -> Ghost | None:
        """From the shortest row that has an image; None when no row has one."""
        found = min((row for row in rows if row.images), key=row_length, default=None)
        return None if found is None else cls(encoder.encode(found), pad_id=encoder.pad_id)

    def __call__(self, batch: Batch) -> Batch:
        """The batch itself when it has an image, else (B + 1, T or longer) with the same supervised tokens."""
        if has_image(batch):
            return batch
        ids_T = self._sample.input_ids_T
        extra = {k: v for k, v in self._sample.pixels.items() if k not in TOKEN_KEYS}
        for key in TOKEN_KEYS:
            if key in batch.pixels or key in self._sample.pixels:
                mine = self._sample.pixels.get(key, torch.zeros_like(ids_T))
                theirs = batch.pixels.get(key, torch.zeros_like(batch.input_ids_BT))
                extra[key] = _below(theirs, mine, 0)
        return replace(
            batch,
            rows=(*batch.rows, self._sample.row),
            input_ids_BT=_below(batch.input_ids_BT, ids_T, self._pad_id),
            labels_BT=_below(batch.labels_BT, torch.full_like(ids_T, IGNORE), IGNORE),
            attention_BT=_below(batch.attention_BT, torch.ones_like(ids_T), 0),
            pixels=extra,
            image_BT=None,
        )


def has_image(batch: Batch) -> bool:
    """Whether any row has an image: pixels are the only floating-point input."""
    return any(tensor.is_floating_point() for tensor in batch.pixels.values())


def _below(rows_BT: Tensor, row_T: Tensor, fill: int) -> Tensor:
    length = max(rows_BT.shape[1], len(row_T))
    out = rows_BT.new_full((len(rows_BT) + 1, length), fill)
    out[:-1, : rows_BT.shape[1]] = rows_BT
    out[-1, : len(row_T)] = row_T
    return out
