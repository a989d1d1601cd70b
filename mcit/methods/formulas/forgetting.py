"""Bounded forget losses on token losses of rows that are to be forgotten.

The bound on a batch's mean loss is GS-LoRA's (arXiv:2403.11530, authors' code); per token and per row are ours: they add up
over micro-batches and ranks, and one very unlikely token does not pay for the rest of its answer.

Shapes: B rows, T positions, N supervised tokens of a batch in row order, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mcit.core.types import Batch


def token_bound(nll_N: Tensor, bound_N: Tensor | float, pushed_N: Tensor) -> Tensor:
    """Sum over pushed tokens of ``max(0, bound - nll)``; a token at its bound has no gradient."""
    return (torch.relu(bound_N - nll_N) * pushed_N).sum()


def row_bound(nll_N: Tensor, row_N: Tensor, bound_B: Tensor, pushed_N: Tensor) -> Tensor:
    """Sum over rows of ``max(0, bound - mean nll of the row's pushed tokens)``; a row without any adds nothing."""
    mean_B, count_B = row_means(nll_N, row_N, pushed_N, rows=len(bound_B))
    return (torch.relu(bound_B - mean_B) * (count_B > 0)).sum()


def batch_bound(nll_N: Tensor, bound: float) -> Tensor:
    """``max(0, bound - mean nll)`` over all supervised tokens: the authors' form, one number per batch."""
    return torch.relu(bound - nll_N.mean())


def row_means(nll_N: Tensor, row_N: Tensor, pushed_N: Tensor, *, rows: int) -> tuple[Tensor, Tensor]:
    """Mean over the pushed tokens of each row, 0 where there are none, and their number; both (B,)."""
    weights_N = pushed_N.to(nll_N.dtype)
    sum_B = nll_N.new_zeros(rows).index_add(0, row_N, nll_N * weights_N)
    count_B = nll_N.new_zeros(rows).index_add(0, row_N, weights_N)
    return sum_B / count_B.clamp_min(1), count_B


def pushed_tokens(row_N: Tensor, *, head: int, tail: int) -> Tensor:
    """True for the supervised tokens of each row but its first `head` and its last `tail`; (N,)."""
    place_N = torch.arange(len(row_N), device=row_N.device)
    first_N = torch.searchsorted(row_N, row_N)
    end_N = torch.searchsorted(row_N, row_N, right=True)
    return (place_N - first_N >= head) & (end_N - place_N > tail)


def shared_ends(answers: Iterable[Sequence[int]], *, leave: Iterable[Sequence[int]]) -> tuple[int, int]:
    """Tokens that all `answers` begin and end with: a template's words and the end marker, nobody's content.

    Every sequence of `leave` keeps at least one token between the two; the beginning gives way first.
    """
    every = [list(answer) for answer in answers]
    if not every:
        return 0, 0
    shortest = min(len(answer) for answer in every)
    head = next((i for i in range(shortest) if len({a[i] for a in every}) > 1), shortest)
    tail = next((i for i in range(shortest) if len({a[-1 - i] for a in every}) > 1), shortest)
    room = min((len(answer) for answer in leave), default=shortest) - 1
    tail = max(0, min(tail, room))
    return max(0, min(head, room - tail)), tail


def without_pictures(batch: Batch) -> Batch:
    """The batch with every pixel 0, the mean colour of a normalised picture; text, masks and sizes stay."""
    blank = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in batch.pixels.items()}
    return replace(batch, pixels=blank)


def predicting(labels_BT: Tensor) -> Tensor:
    """True at positions that predict a supervised token, (B, T); in row order they are the N tokens of an output."""
    keep_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    keep_BT[:, :-1] = labels_BT[:, 1:] != -100
    return keep_BT
