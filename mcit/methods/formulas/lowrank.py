"""Pure functions of low-rank products. Shapes: O out features, I in features, R rank, K kept positions, P bit planes.

Key positions of an (O, I) matrix come in one of two packed forms, whichever is smaller: int32 ``(K,)``, sorted flat
positions (one repeated n times counts n times); or uint8 ``(P, O, ceil(I / 8))``, where bit i % 8 of byte i // 8 of row o
in plane p is bit p of the count of position (o, i). Sets need one plane: one bit per weight, however many were united.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad

_TILE = 1 << 21  # speed: weights of a tile: 8 MB where it is formed densely
_SMALL = 1 << 16  # speed: up to here a dense tile is cheaper than the calls of the sparse way
_DENSE_SHARE = 1 / 6  # speed: from this share of kept positions on a dense tile is faster on a CPU
_KEPT_SHARE = (
    1 / 4
)  # speed: up to this share of a one-tile matrix the order of its keys is worked out once, not every step
_BAGS = 256  # speed: columns whose gradient is summed at a time
_CHUNK = 4096  # speed: positions gathered at a time
_INT32 = torch.iinfo(torch.int32).max
_BITS = torch.tensor(list(product((0, 1), repeat=8)), dtype=torch.uint8).flip(1)
"""(256, 8): the bits of every byte, the lowest first."""


def product_distance2(B_OR: Tensor, A_RI: Tensor, B0_OR: Tensor, A0_RI: Tensor) -> Tensor:
    """``|B A - B0 A0|_F^2`` from Gram matrices, in O((O + I) R^2) instead of O(O I R).

    With U = [B, -B0] and V = [A; A0], ``|U V|^2 = sum((U^T U) * (V V^T))``.
    """
    U_OQ = torch.cat([B_OR, -B0_OR], dim=1)
    V_QI = torch.cat([A_RI, A0_RI], dim=0)
    return ((U_OQ.T @ U_OQ) * (V_QI @ V_QI.T)).sum()


def lowrank_entries(B_OR: Tensor, A_RI: Tensor, positions_K: Tensor, *, chunk: int = _CHUNK) -> Tensor:
    """Entries of B A at flat positions, (K,), gathered `chunk` at a time; the product is not formed."""
    A_IR = A_RI.T.contiguous()
    parts = [B_OR.new_zeros(0)]
    for part in positions_K.long().split(chunk):
        rows, columns = part // A_RI.shape[1], part % A_RI.shape[1]
        parts.append((B_OR[rows] * A_IR[columns]).sum(1))
    return torch.cat(parts)


# ---- choosing and packing positions ---------------------------------------------------------------------------------
def key_count(shape: tuple[int, ...], share: float) -> int:
    """Positions that are `share` (0 to 1) of an (O, I) matrix, rounded down, at least 1."""
    return max(1, math.floor(Fraction(str(share)) * shape[0] * shape[1]))


def top_positions(D_OI: Tensor, count: int) -> Tensor:
    """Sorted flat positions, int64 (count,), of the largest |D|; of equal entries the lowest positions are taken."""
    size = D_OI.detach().abs().flatten()
    lowest = size.topk(count, sorted=False).values.min()
    above = (size > lowest).nonzero().flatten()
    equal = (size == lowest).nonzero().flatten()[: count - len(above)]
    return torch.cat([above, equal]).sort().values


def union(keys: Tensor | None, positions_K: Tensor, *, shape: tuple[int, ...], repeats: bool = False) -> Tensor:
    """Packed `keys` (None is empty) with flat positions added; a repeated position counts once, or with `repeats` each."""
    old = positions_K.new_zeros(0) if keys is None else unpack_keys(keys, shape=shape).to(positions_K)
    both = torch.cat([old, positions_K])
    return pack_keys(both.sort().values if repeats else both.unique(), shape=shape)


def pack_keys(positions_K: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """The smaller packed form of sorted flat positions (positions where both are equal)."""
    if not len(positions_K):
        return positions_K.to(torch.int32)
    O, I = shape
    planes = int(positions_K.unique_consecutive(return_counts=True)[1].max()).bit_length()
    if 4 * len(positions_K) <= planes * O * _width(I) and O * I <= _INT32:
        return positions_K.to(torch.int32)
    count = torch.zeros(O * I, dtype=torch.int32, device=positions_K.device)
    count.scatter_add_(0, positions_K.long(), torch.ones_like(positions_K, dtype=torch.int32))
    count_OI = pad(count.view(O, I), (0, _width(I) * 8 - I)).view(O, -1, 8)
    value = (1 << torch.arange(8, device=count.device)).to(torch.uint8)
    return torch.stack(
        [(((count_OI >> p) & 1).to(torch.uint8) * value).sum(-1, dtype=torch.uint8) for p in range(planes)]
    )


def unpack_keys(keys: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Sorted flat positions, int64 (K,), of a packed form; a position with count n comes n times."""
    if keys.dim() == 1:
        return keys.long()
    count = _counts(keys, shape[1]).flatten()
    where = count.nonzero().flatten()
    return where.repeat_interleave(count[where].long())


def _width(columns: int) -> int:
    return -(-columns // 8)


def _counts(planes: Tensor, columns: int) -> Tensor:
    """uint8 (rows, columns) from planes (P, rows, bytes)."""
    bits = _BITS.to(planes.device).index_select(0, planes.flatten().int()).view(*planes.shape[:2], -1)[..., :columns]
    total = bits[0]
    for p in range(1, len(bits)):
        total = total + (bits[p] << p)
    return total


# ---- the penalty ----------------------------------------------------------------------------------------------------
def key_mean(B_OR: Tensor, A_RI: Tensor, keys: Tensor, *, dense: bool | None = None) -> Tensor:
    """Mean of |B A| over packed key positions; ``sign(0)`` is 0. Backward can run once, as it scales its gradients in place.

    Value and gradients are made together, tile by tile over output rows, and nothing of size O x I is kept: the gradients,
    ``S A^T`` and ``B^T S`` with S the signs at the keys over their number, are all that waits for backward. On a CPU a tile
    with few keys forms only their entries; elsewhere tiles are dense. `dense` decides it for every tile.
    """
    mean: Tensor = _KeyMean.apply(B_OR, A_RI, keys, dense)
    return mean


class _KeyMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, B_OR: Tensor, A_RI: Tensor, keys: Tensor, dense: bool | None) -> Tensor:
        order = _kept_order(B_OR, A_RI, keys, dense)
        if order is not None:
            mean, dB_OR, dA_IR = _kept_mean(B_OR, A_RI, order)
            ctx.save_for_backward(dB_OR, dA_IR)
            return mean
        dB_OR, sums, counts, waiting = torch.zeros_like(B_OR), [], [], []
        if _sparse_allowed(B_OR, A_RI, dense):
            A_IR = A_RI.T.contiguous()
            for start, stop, places, times in _tiles(keys, B_OR, A_RI, dense):
                if places is not None:
                    total, signs = _sparse_rows(B_OR[start:stop], A_IR, *places, times, dB_OR[start:stop])
                    sums.append(total)
                    waiting.append(signs.to(torch.int16))
            del A_IR  # A's copy and A's gradient are never held together: a second pass over the keys is cheaper
        dA_IR, signs_of = B_OR.new_zeros(A_RI.shape[::-1]), iter(waiting)
        for start, stop, places, times in _tiles(keys, B_OR, A_RI, dense):
            if times is not None and keys.dim() == 3:
                counts.append(times.sum())
            if places is not None:
                _sparse_columns(B_OR[start:stop], *places, next(signs_of).to(B_OR.dtype), dA_IR)
            elif times is not None:
                sums.append(_dense_tile(B_OR[start:stop], A_RI, times, dB_OR[start:stop], dA_IR))
        number = torch.stack(counts).sum() if counts else len(keys)
        ctx.save_for_backward(dB_OR.div_(number), dA_IR.div_(number))
        return torch.stack(sums).sum() / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dB_OR, dA_IR = ctx.saved_tensors
        return dB_OR.mul_(grad), dA_IR.mul_(grad).T, None, None


# ---- small matrices with few keys: the order of the keys is worked out once ------------------------------------------
@dataclass(frozen=True, slots=True)
class _Order:
    """Where the K keys of a matrix are: by row, and the same keys by column; int16 where columns and rows fit."""

    shape: tuple[int, int]
    columns: Tensor
    """(K,), by row."""
    row_starts: Tensor
    """(O + 1,) int32, into `columns`."""
    rows: Tensor
    """(K,), by column."""
    column_starts: Tensor
    """(I + 1,) int32, into `rows`."""
    by_column: Tensor
    """(K,) int32: the number that each key of `rows` has in `columns`."""


def _kept_order(B_OR: Tensor, A_RI: Tensor, keys: Tensor, dense: bool | None) -> _Order | None:
    """The order of `keys` if the whole matrix is one tile with few of them, else None."""
    area = len(B_OR) * A_RI.shape[1]
    if area > _TILE or not len(keys) or not _sparse_allowed(B_OR, A_RI, dense):
        return None
    return _order(keys, (len(B_OR), A_RI.shape[1])) if _number(keys, A_RI.shape[1]) <= _KEPT_SHARE * area else None


def _number(keys: Tensor, columns: int) -> int:
    """How many keys there are, repeats counted; of a bit mask counted once and kept with it."""
    if keys.dim() == 1:
        return len(keys)
    kept: int | None = getattr(keys, "_number", None)
    if kept is None:
        kept = int(_counts(keys, columns).sum())
        keys._number = kept  # type: ignore[attr-defined]
    return kept


def _order(keys: Tensor, shape: tuple[int, int]) -> _Order:
    """The order of packed `keys`, kept with the tensor itself: as long as it lives, and no longer."""
    kept: _Order | None = getattr(keys, "_order", None)
    if kept is None or kept.shape != shape:
        O, I = shape
        places = unpack_keys(keys, shape=shape)
        rows, columns = places // I, places % I
        by_column, order = columns.sort(stable=True)
        small = torch.int16 if max(shape) <= torch.iinfo(torch.int16).max else torch.int32
        kept = _Order(
            shape,
            columns=columns.to(small),
            row_starts=torch.searchsorted(rows, torch.arange(O + 1), out_int32=True),
            rows=rows[order].to(small),
            column_starts=torch.searchsorted(by_column, torch.arange(I + 1), out_int32=True),
            by_column=order.int(),
        )
        keys._order = kept  # type: ignore[attr-defined]
    return kept


def _kept_mean(B_OR: Tensor, A_RI: Tensor, order: _Order) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of |B A| at the keys, and its gradients for B (O, R) and A (I, R). The entries are worked out once, by row."""
    A_IR = A_RI.T.contiguous()
    columns = order.columns.int()
    signs = _entries(order.row_starts, columns, B_OR, A_IR).sign_()
    dB_OR = _row_sums(order.row_starts, columns, signs, A_IR)
    dA_IR = _row_sums(order.column_starts, order.rows.int(), signs.index_select(0, order.by_column), B_OR)
    number = len(columns)
    dB_OR, dA_IR = dB_OR.div_(number), dA_IR.div_(number)
    return (B_OR * dB_OR).sum(), dB_OR, dA_IR  # the sum of B A * signs, over their number


def _row_sums(starts: Tensor, picked: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """Per row of a sparse matrix the weighted sum of the vectors that it picks."""
    if not torch.backends.mkl.is_available():  # torch multiplies CSR matrices on a CPU with MKL only
        return _bag_sums(picked, vectors, starts[:-1], weights)
    return _csr(starts, picked, weights, len(vectors)) @ vectors


def _csr(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    with warnings.catch_warnings():  # torch calls its CSR layout beta, once per process
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, (len(starts) - 1, width), check_invariants=False)


def _entries(row_starts: Tensor, columns: Tensor, B_TR: Tensor, A_IR: Tensor) -> Tensor:
    """Entries of B A at the keys alone, (K,)."""
    pattern = _csr(row_starts, columns, B_TR.new_zeros(len(columns)), len(A_IR))
    return torch.sparse.sampled_addmm(pattern, B_TR.contiguous(), A_IR.T).values()


def _bag_sums(picked: Tensor, vectors: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Rows of a sparse product: per bag the weighted sum of the picked vectors."""
    return embedding_bag(picked, vectors, starts, mode="sum", per_sample_weights=weights)


# ---- tiles ----------------------------------------------------------------------------------------------------------
_Tile = tuple[int, int, tuple[Tensor, Tensor] | None, Tensor | None]


def _tiles(keys: Tensor, B_OR: Tensor, A_RI: Tensor, dense: bool | None) -> Iterator[_Tile]:
    """First and last row, and the keys between: (row in the tile, column), count (None: 1); or None, counts (rows, I).

    Keys stay where they are and are moved to the device of B one tile at a time.
    """
    O, I, device = len(B_OR), A_RI.shape[1], B_OR.device
    height = max(1, _TILE // I)
    starts = list(range(0, O, height))
    most = _sparse_share(dense)
    sparse = _sparse_allowed(B_OR, A_RI, dense)
    cuts = _cuts(keys, [start * I for start in [*starts, O]]) if keys.dim() == 1 else []
    for n, start in enumerate(starts):
        stop = min(O, start + height)
        area = (stop - start) * I
        if cuts:
            flat = keys[cuts[n] : cuts[n + 1]].to(device) - start * I
            if sparse and len(flat) <= most * area:
                rows = flat // I
                yield start, stop, (rows, flat.sub_(rows * I)), None
                continue
            times = torch.zeros(area, dtype=torch.int32, device=device)
            times = times.scatter_add_(0, flat.long(), torch.ones_like(flat)).view(-1, I)
        else:
            times = _counts(keys[:, start:stop].to(device), I)
            if sparse and int(times.count_nonzero()) <= most * area:
                rows, columns = times.nonzero(as_tuple=True)
                yield start, stop, (rows.int(), columns.int()), times[rows, columns]
                continue
        yield start, stop, None, times


def _sparse_allowed(B_OR: Tensor, A_RI: Tensor, dense: bool | None) -> bool:
    if dense is not None:
        return not dense
    return B_OR.device.type == "cpu" and len(B_OR) * A_RI.shape[1] > _SMALL


def _sparse_share(dense: bool | None) -> float:
    """Share of keys up to which a tile is sparse where it may be."""
    return 1.0 if dense is not None else _DENSE_SHARE


def _cuts(keys: Tensor, edges: list[int]) -> list[int]:
    cuts: list[int] = torch.searchsorted(keys, torch.tensor(edges, dtype=keys.dtype, device=keys.device)).tolist()
    return cuts


def _dense_tile(B_TR: Tensor, A_RI: Tensor, times_TI: Tensor, dB_TR: Tensor, dA_IR: Tensor) -> Tensor:
    """Sum of |B A| times count; adds the tile's share of both gradients in place."""
    D_TI = B_TR @ A_RI
    S_TI = D_TI.sign_().mul_(times_TI)
    dB_TR.copy_(S_TI @ A_RI.T)
    dA_IR.addmm_(S_TI.T, B_TR)
    return (B_TR * dB_TR).sum()  # the sum of B A * S


def _sparse_rows(
    B_TR: Tensor, A_IR: Tensor, rows: Tensor, columns: Tensor, times: Tensor | None, dB_TR: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of |B A| times count from the entries at the keys alone, and their signs times count; sets the gradient of B."""
    if not len(rows):
        return B_TR.new_zeros(()), B_TR.new_zeros(len(rows))
    first = torch.searchsorted(rows, torch.arange(len(B_TR) + 1, dtype=torch.int32), out_int32=True)
    entries = _entries(first, columns, B_TR, A_IR)
    signs = entries.sign() if times is None else entries.sign().mul_(times)
    dB_TR.copy_(_bag_sums(columns, A_IR, first[:-1], signs))
    return entries.mul_(signs).sum(), signs


def _sparse_columns(B_TR: Tensor, rows: Tensor, columns: Tensor, signs: Tensor, dA_IR: Tensor) -> None:
    """Add the tile's share of the gradient of A, a few columns at a time."""
    if not len(rows):
        return
    columns, order = columns.sort(stable=True)
    bags = torch.searchsorted(columns, torch.arange(len(dA_IR), dtype=torch.int32), out_int32=True)
    rows, signs = rows[order], signs[order]
    cuts = [*bags.tolist(), len(columns)]
    for start in range(0, len(dA_IR), _BAGS):
        stop = min(len(dA_IR), start + _BAGS)
        keys = slice(cuts[start], cuts[stop])
        own = bags[start:stop] - cuts[start]
        dA_IR[start:stop] += _bag_sums(rows[keys], B_TR, own, signs[keys])
