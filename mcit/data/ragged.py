"""Tensors of unequal shapes in one: the end of every axis but the first is filled with zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate over the first axis; later axes become as long as the longest of their kind."""
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    if all(list(part.shape[1:]) == shape for part in parts):
        return torch.cat(list(parts))
    padded = []
    for part in parts:
        whole = part.new_zeros([part.shape[0], *shape])
        whole[tuple(slice(0, size) for size in part.shape)] = part
        padded.append(whole)
    return torch.cat(padded)
