"""Samples -> Batch: text padded to one length, pictures of all rows in one tensor.

Shapes: B rows, T positions of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mcit.core.types import Batch, Sample
from mcit.data.encode import IGNORE
from mcit.data.ragged import join


def collate(samples: Sequence[Sample], *, stream: str, pad_id: int, side: Literal["right", "left"] = "right") -> Batch:
    """Pad samples to the longest; the attention mask, not the pad id, tells padding apart.

    Values per token are padded where the tokens are; values per row are zero in rows without an image; everything else is
    concatenated over images, and rows without an image add nothing. Where shapes differ after the first axis (rows of
    unequal tiling), the end is padded with zeros. `side` is left for generation.
    """
    length = max(len(sample.input_ids_T) for sample in samples)

    def stacked(rows: Sequence[Tensor], fill: int) -> Tensor:
        return torch.stack([pad_tokens(row, length, fill, side=side) for row in rows])

    labels = stacked([s.labels_T for s in samples], IGNORE)
    image = None
    if any(s.image_T is not None for s in samples):
        masks = [torch.zeros_like(s.input_ids_T) if s.image_T is None else s.image_T for s in samples]
        image = stacked(masks, 0).bool()
    return Batch(
        stream=stream,
        rows=tuple(s.row for s in samples),
        input_ids_BT=stacked([s.input_ids_T for s in samples], pad_id),
        labels_BT=labels,
        attention_BT=stacked([torch.ones_like(s.input_ids_T) for s in samples], 0),
        pixels=_pixels(samples, length, side),
        target_count=int((labels[:, 1:] != IGNORE).sum()),
        image_BT=image,
        views=tuple(s.view for s in samples),
        row_keys=frozenset().union(*(s.row_keys for s in samples)),
    )


def pad_tokens(row_T: Tensor, length: int, fill: float, *, side: Literal["right", "left"] = "right") -> Tensor:
    """Values of one row, (T, ...), filled up to (length, ...)."""
    out = row_T.new_full((length, *row_T.shape[1:]), fill)
    first = length - len(row_T) if side == "left" else 0
    out[first : first + len(row_T)] = row_T
    return out


def _pixels(samples: Sequence[Sample], length: int, side: Literal["right", "left"]) -> dict[str, Tensor]:
    tokens = frozenset().union(*(s.token_keys for s in samples))
    rows = frozenset().union(*(s.row_keys for s in samples))
    out = {}
    for key in sorted({key for s in samples for key in s.pixels}):
        like = next(s.pixels[key] for s in samples if key in s.pixels)
        if key in tokens:
            parts = [s.pixels.get(key, like.new_zeros(len(s.input_ids_T), *like.shape[1:])) for s in samples]
            out[key] = join([pad_tokens(part, length, 0, side=side).unsqueeze(0) for part in parts])
        elif key in rows:
            out[key] = join([s.pixels.get(key, torch.zeros_like(like)) for s in samples])
        else:
            out[key] = join([s.pixels[key] for s in samples if key in s.pixels])
    return out
