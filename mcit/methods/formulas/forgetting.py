"""Bounded forget losses on token losses of rows that are to be forgotten.

The bound on a batch's mean loss is GS-LoRA's (arXiv:2403.11530, authors' code); per token and per row are ours: they add up
over micro-batches and ranks, and one very unlikely token does not pay for the rest of its answer.

Shapes: B rows, T positions, N supervised tokens of a batch in row order, D hidden.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mcit.core.errors import DataError
from mcit.core.interfaces import StageContext
from mcit.core.types import Batch, Counts, ModelOutput, Row, Stage

LOOKED_AT = 64
"""Retained rows that are looked at for what answers share."""


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


def spared_ends(ctx: StageContext, rows: str | Sequence[Row] = "forget") -> tuple[int, int]:
    """`shared_ends` of all rows of a stream, or of a list, and of retained rows drawn by the stage's seed.

    Rows in stored order could all be of one class, whose answers share more than those of the stage.
    """
    forgotten = [ids for batch, out in ctx.forward_pass(rows) for ids in answers_of(out, len(batch.rows))]
    sample = drawn(ctx.data.stage_rows(), LOOKED_AT, ctx.seed)
    retained = [ids for batch, out in ctx.forward_pass(sample) for ids in answers_of(out, len(batch.rows))]
    return shared_ends([*forgotten, *retained], leave=forgotten)


def answers_of(out: ModelOutput, rows: int) -> list[list[int]]:
    """The supervised tokens of each row of a batch."""
    targets = out.targets_N.tolist()
    ends = torch.bincount(out.row_N, minlength=rows).cumsum(0).tolist()
    return [targets[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def drawn(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """`count` of the rows drawn by `seed`, in their order; all of them for None or where there are not more."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(f"{seed}/drawn").sample(range(len(rows)), count))]


def pushed_in_step(counts: Counts, spare: Sequence[int], stream: str = "forget") -> int:
    """Pushed tokens of a stream in the step over all ranks: every row spares equally many; at least 1."""
    return max(1, counts.of(stream, "tokens") - sum(spare) * counts.of(stream, "rows"))


def row_key(row: Row) -> str:
    """What state says of a row by: task and id."""
    return f"{row.task}/{row.id}"


def seen_pictures(rows: Iterable[Row], who: str, *, fix: str) -> None:
    """Raises DataError for a row without a picture, which there is nothing to be blind to."""
    for row in rows:
        if not row.images:
            raise DataError(f"has no picture to leave out, {who}", where=row.where, fix=fix)


def one_answer_each(rows: Iterable[Row], *, without: str = "spare: none") -> None:
    """Raises DataError for a row with several answers: spared ends are those of the whole row, and `without` spares none."""
    for row in rows:
        if sum(turn.role == "assistant" for turn in row.turns) > 1:
            what = "has several answers, and only the ends of the whole row would be spared"
            raise DataError(what, where=row.where, fix=f"give one question per row to forget, or set {without}")


def without_pictures(batch: Batch) -> Batch:
    """The batch with every pixel 0, the mean colour of a normalised picture; text, masks and sizes stay."""
    blank = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in batch.pixels.items()}
    return replace(batch, pixels=blank)


def predicting(labels_BT: Tensor) -> Tensor:
    """True at positions that predict a supervised token, (B, T); in row order they are the N tokens of an output."""
    keep_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    keep_BT[:, :-1] = labels_BT[:, 1:] != -100
    return keep_BT


def deleted(stage: Stage) -> list[str]:
    """Recipes of what a stage forgets whose data are not there any more."""
    return [task.recipe for task in stage.forget if task.gone or not Path(task.folder).is_dir()]
