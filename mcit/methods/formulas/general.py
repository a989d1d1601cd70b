"""What GeRe keeps of the base model on a pool of general rows: states of hidden features, or what its rivals compare with.

Passes are shared out over ranks. A row's moments are computed on one rank and joined in row order, and which rows share a
forward pass depends on the pool alone, so the result is the same on any number of ranks.

Shapes: R rows of the pool, P constrained positions of all rows one after the other, D features, C = ceil(D / 8) bytes,
N supervised tokens of all rows, K likeliest tokens kept of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mcit.core.errors import StateError
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, JsonDict, ModelOutput, Row
from mcit.methods.formulas.divergence import top_log_probs
from mcit.methods.formulas.margin import Moments, merged, moments_of, states, thresholds

TEXT, IMAGE_TEXT = "text", "image-text"
HELD_BYTES = 1 << 30  # speed: a pass through the base saved, for memory of the host
"""Hidden states up to this size are held between statistics and states; beyond it the base runs a second time."""

Built = tuple[dict[str, Tensor], JsonDict]


def row_type(row: Row) -> str:
    """``text`` or ``image-text``: their features differ, so each has thresholds of its own."""
    return IMAGE_TEXT if row.images else TEXT


def constrained(batch: Batch) -> Tensor:
    """Positions that hold text, (B, T): neither padding nor an image, nor any of a row that nothing is supervised of."""
    text = batch.attention_BT.bool()
    return text if batch.image_BT is None else text & ~batch.image_BT


def row_hidden(out: ModelOutput, mask_BT: Tensor, row: int) -> Tensor:
    """Last hidden states of a row's constrained positions, (P, D). Raises TrainingError if none were claimed."""
    mask_T = mask_BT[row].to(out.hidden_BTD.device)
    return out.hidden_BTD[row, : len(mask_T)][mask_T]


def real_rows(batch: Batch) -> list[int]:
    """Rows of a batch with something supervised; a row that only keeps ranks in step has nothing."""
    return (batch.labels_BT[:, 1:] != -100).any(1).nonzero().flatten().tolist()


# ---- building --------------------------------------------------------------------------------------------------------
def build_states(ctx: StepContext, rows: Sequence[Row], *, multiplier: float) -> Built:
    """``states`` (P, 2, C) and thresholds ``high``, ``low`` (types, D) of the base's last hidden states."""
    hidden = _Hidden(ctx, rows)
    counts, moments = _row_moments(ctx, rows, hidden)
    types = sorted({row_type(row) for row in rows})
    limits = {}
    for name in types:
        total: Moments | None = None
        for place, row in enumerate(rows):
            if row_type(row) == name:
                total = moments[place] if total is None else merged(total, moments[place])
        limits[name] = thresholds(_known(total, name), multiplier)
    high = torch.stack([limits[name][0] for name in types])
    low = torch.stack([limits[name][1] for name in types])
    starts = _starts(counts)
    codes = torch.zeros(starts[-1], 2, -(-high.shape[-1] // 8), dtype=torch.uint8)
    for place, hidden_PD in hidden.second():
        high_D, low_D = limits[row_type(rows[place])]
        codes[starts[place] : starts[place + 1]] = states(hidden_PD, high_D, low_D)
    return {"states": ctx.all_sum(codes), "high": high, "low": low}, _index(rows, starts, types)


def build_hidden(ctx: StepContext, rows: Sequence[Row]) -> Built:
    """``hidden`` (P, D), the base's last hidden states in bf16: for the feature losses."""
    hidden = _Hidden(ctx, rows)
    counts, width = _shapes(ctx, rows, ((place, hidden_PD.shape) for place, hidden_PD in hidden.first()))
    starts = _starts(counts)
    values = torch.zeros(starts[-1], width, dtype=torch.bfloat16)
    for place, hidden_PD in hidden.second():
        values[starts[place] : starts[place + 1]] = hidden_PD.bfloat16()
    joined = ctx.all_sum(values.view(torch.uint8)).view(
        torch.bfloat16
    )  # of each number all but one rank hold zero bits
    return {"hidden": joined}, _index(rows, starts, [])


def build_logits(ctx: StepContext, rows: Sequence[Row], *, count: int, temperature: float) -> Built:
    """``ids`` and ``log_p`` (N, K) of the base's likeliest tokens at every supervised position."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for places, _batch, out in ctx.base_pass(rows, logits=True):
        for k, place in enumerate(places):
            ids, log_p = top_log_probs(out.logits_NV[out.row_N == k], count, temperature)
            found[place] = (ids.cpu(), log_p.cpu())
    counts, width = _shapes(ctx, rows, ((place, ids.shape) for place, (ids, _) in found.items()))
    starts = _starts(counts)
    all_ids = torch.zeros(starts[-1], width, dtype=torch.int32)
    all_log_p = torch.zeros(starts[-1], width)
    for place, (ids, log_p) in found.items():
        all_ids[starts[place] : starts[place + 1]] = ids
        all_log_p[starts[place] : starts[place + 1]] = log_p
    return {"ids": ctx.all_sum(all_ids), "log_p": ctx.all_sum(all_log_p)}, _index(rows, starts, [])


class _Hidden:
    """Hidden states by row (constrained positions, fp32, host): held after the first pass, or computed again if large."""

    def __init__(self, ctx: StepContext, rows: Sequence[Row]) -> None:
        self._ctx, self._rows = ctx, rows
        self._kept: list[tuple[int, Tensor]] | None = []

    def first(self) -> Iterator[tuple[int, Tensor]]:
        """This rank's rows, by a pass through the base."""
        size = 0
        for place, hidden_PD in self._run():
            size += hidden_PD.nbytes
            if size > HELD_BYTES:
                self._kept = None
            if self._kept is not None:
                self._kept.append((place, hidden_PD))
            yield place, hidden_PD

    def second(self) -> Iterator[tuple[int, Tensor]]:
        """The same again. Ranks agree on whether that takes a pass, for a pass is collective."""
        if int(self._ctx.all_sum(torch.tensor([self._kept is None]).long())):
            return self._run()
        return iter(self._kept or [])

    def _run(self) -> Iterator[tuple[int, Tensor]]:
        for places, batch, out in self._ctx.base_pass(self._rows):
            mask_BT = constrained(batch)
            for k, place in enumerate(places):
                yield place, row_hidden(out, mask_BT, k).float().cpu()


def _shapes(ctx: StepContext, rows: Sequence[Row], found: Iterable[tuple[int, Sequence[int]]]) -> tuple[list[int], int]:
    """Length of every row's entries and the width that all of them have, from the shapes of this rank's rows."""
    shapes = torch.zeros(len(rows), 2, dtype=torch.int64)
    for place, shape in found:
        shapes[place] = torch.tensor(shape)
    counts, widths = ctx.all_sum(shapes).T.tolist()
    return counts, max(widths, default=0)


def _row_moments(ctx: StepContext, rows: Sequence[Row], hidden: _Hidden) -> tuple[list[int], list[Moments]]:
    """Positions and moments of every row, the same on all ranks."""
    found = {place: moments_of(hidden_PD) for place, hidden_PD in hidden.first()}
    counts, width = _shapes(ctx, rows, ((place, (m.count, len(m.mean_D))) for place, m in found.items()))
    table = torch.zeros(len(rows), 2, width, dtype=torch.float64)
    for place, moments in found.items():
        table[place] = torch.stack([moments.mean_D, moments.m2_D])
    return counts, [Moments(n, *both) for n, both in zip(counts, ctx.all_sum(table).unbind(), strict=True)]


def _starts(counts: Sequence[int]) -> list[int]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


def _index(rows: Sequence[Row], starts: Sequence[int], types: Sequence[str]) -> JsonDict:
    places = {
        row.id: [starts[k], starts[k + 1], types.index(row_type(row)) if types else 0] for k, row in enumerate(rows)
    }
    return {"rows": places, "types": list(types)}


def _known(total: Moments | None, name: str) -> Moments:
    if total is None or not total.count:
        raise StateError(f"the {name} rows of the pool have no text position", where="gere", fix="add text to them")
    return total


# ---- reading ---------------------------------------------------------------------------------------------------------
def places_of(index: JsonDict, row: Row, length: int) -> tuple[int, int, int]:
    """Where a row's entries start and end, and its type's number.

    Raises StateError for a row the blob does not know, or of another length: never a neighbour's entries.
    """
    found = index["rows"].get(row.id)
    if found is None:
        raise StateError("has no states of the base model", where=row.where, fix="restore the pool, or start a new run")
    start, end, kind = found
    if end - start != length:
        raise StateError(
            f"has {length} positions, its states of the base model are for {end - start}",
            where=row.where,
            fix="restore pool and tokenizer, or start a new run",
        )
    return start, end, kind
