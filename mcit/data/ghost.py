"""A row that nothing is learned from, to make a batch without images run what a batch with images runs.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mcit.core.types import Batch, Row, Sample
from mcit.data.collate import pad_tokens
from mcit.data.encode import IGNORE, Encoder
from mcit.data.ragged import join
from mcit.data.rowset import row_length


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
        sample, ids_T = self._sample, self._sample.input_ids_T
        count, width = batch.input_ids_BT.shape
        extra = dict(sample.pixels)
        for key in sorted({*batch.pixels, *sample.token_keys}):  # a batch without images has values per token only
            like = sample.pixels[key] if key in sample.pixels else batch.pixels[key][0]
            mine = sample.pixels.get(key, like.new_zeros(len(ids_T), *like.shape[1:]))
            theirs = batch.pixels.get(key, like.new_zeros(count, width, *like.shape[1:]))
            extra[key] = _below(theirs, mine, 0)
        for key in sample.row_keys:
            value = sample.pixels[key]
            extra[key] = torch.cat([value.new_zeros(count, *value.shape[1:]), value])
        return replace(
            batch,
            rows=(*batch.rows, self._sample.row),
            input_ids_BT=_below(batch.input_ids_BT, ids_T, self._pad_id),
            labels_BT=_below(batch.labels_BT, torch.full_like(ids_T, IGNORE), IGNORE),
            attention_BT=_below(batch.attention_BT, torch.ones_like(ids_T), 0),
            pixels=extra,
            image_BT=None,
            row_keys=sample.row_keys,
        )


def has_image(batch: Batch) -> bool:
    """Whether any row has an image: pixels are the only floating-point input."""
    return any(tensor.is_floating_point() for tensor in batch.pixels.values())


def _below(rows_BT: Tensor, row_T: Tensor, fill: int) -> Tensor:
    length = max(rows_BT.shape[1], len(row_T))
    return join([pad_tokens(row, length, fill).unsqueeze(0) for row in (*rows_BT, row_T)])
