"""The rows of a batch one after the other in a single sequence: no padding, and the picture prefix of several rows once.

Rows that show the same pictures and begin with the same tokens share those: every later position of such a row attends to the
shared prefix and, causally, to its own row. Positions go on after the prefix as if each row stood alone, so that loss and
gradients are those of separate rows up to the order of sums.

Shapes: B rows, T positions of the longest, P positions of the pack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcit.core.types import Batch, Row

_SAVED = 0.9
"""A pack pays from this share of the padded positions down."""


@dataclass(frozen=True, slots=True)
class Run:
    """Positions that follow each other in a pack: they attend causally to themselves, and to all of a prefix before."""

    start: int
    length: int
    prefix: int = 0
    """Where the prefix starts."""
    shared: int = 0
    """Its length; 0 is none."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows of a batch in one sequence, in host memory."""

    input_ids_P: Tensor
    positions_P: Tensor
    """The place that each position has in its row."""
    place_BT: Tensor
    """Where a position of a row is in the pack; -1 where it is padding or left out."""
    pixels: Mapping[str, Tensor]
    """The batch's, each shared picture once."""
    runs: tuple[Run, ...]

    def __len__(self) -> int:
        return len(self.input_ids_P)


def pack_rows(batch: Batch, *, whole: bool = True, always: bool = False) -> Pack | None:
    """The pack of a batch; None where it would save little (but with `always`) or the batch cannot be packed.

    Positions after the last one that predicts a supervised token are left out unless `whole`: no other position sees them.
    """
    lengths = batch.attention_BT.sum(1).tolist()
    if any(not bool(batch.attention_BT[b, :n].all()) for b, n in enumerate(lengths)):
        return None  # padded on the left
    pictures = _pictures(batch)
    if pictures is None:
        return None
    needed = lengths if whole else _needed(batch, lengths)
    groups = _groups(batch, pictures, needed)
    cells = batch.input_ids_BT.numel()
    if not always and sum(max(n, 0) for n in _sizes(groups, needed)) > _SAVED * cells:
        return None
    return _laid_out(batch, groups, needed, pictures)


# ---- which rows share what ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Group:
    """Rows with a common prefix of `shared` positions; a row alone shares nothing."""

    rows: tuple[int, ...]
    shared: int = 0


def _sizes(groups: Sequence[_Group], needed: Sequence[int]) -> list[int]:
    return [group.shared + sum(needed[b] - group.shared for b in group.rows) for group in groups]


def _needed(batch: Batch, lengths: Sequence[int]) -> list[int]:
    """Positions of each row up to the last that predicts a supervised token; all of a row that teaches nothing."""
    if batch.pixels and batch.image_BT is None:
        return list(lengths)  # where its pictures stand is not known
    ends = []
    for labels_T, length in zip(batch.labels_BT, lengths, strict=True):
        supervised = (labels_T[1:] != -100).nonzero().flatten()
        ends.append(int(supervised[-1]) + 1 if len(supervised) else length)
    if batch.image_BT is not None:
        last = [int(mask_T.nonzero()[-1]) + 1 if bool(mask_T.any()) else 0 for mask_T in batch.image_BT]
        ends = [max(end, seen) for end, seen in zip(ends, last, strict=True)]
    return ends


def _groups(batch: Batch, pictures: _Pictures, needed: Sequence[int]) -> list[_Group]:
    """Rows by the pictures they show, in the order of their first rows."""
    like: list[list[int]] = []
    for b in range(len(batch.rows)):
        home = next((rows for rows in like if pictures.same(rows[0], b)), None) if pictures.known(b) else None
        if home is None:
            like.append([b])
        else:
            home.append(b)
    out = []
    for rows in like:
        shared = _common(batch, rows, needed) if len(rows) > 1 else 0
        out += [_Group(tuple(rows), shared)] if shared else [_Group((b,)) for b in rows]
    return sorted(out, key=lambda group: group.rows[0])


def _common(batch: Batch, rows: Sequence[int], needed: Sequence[int]) -> int:
    """How many tokens all of the rows begin with; 0 when a picture stands after them."""
    least = min(needed[b] for b in rows)
    ids = batch.input_ids_BT[list(rows), :least]
    unlike = (ids != ids[:1]).any(0).nonzero().flatten()
    common = int(unlike[0]) if len(unlike) else least
    later = batch.image_BT[list(rows), common:] if batch.image_BT is not None else None
    return 0 if later is None or bool(later.any()) else common


class _Pictures:
    """Which entries of each picture value belong to which row."""

    def __init__(self, rows: Sequence[Row], pixels: Mapping[str, Tensor], spans: Mapping[str, list[range]]) -> None:
        self._rows, self._pixels, self._spans = rows, pixels, spans

    def known(self, b: int) -> bool:
        """Whether the row has pictures."""
        return bool(self._rows[b].images)

    def same(self, a: int, b: int) -> bool:
        """Whether two rows show the same pictures: the same files, and in the end the same values."""
        first, second = self._rows[a], self._rows[b]
        if (first.root, first.images, first.encoding) != (second.root, second.images, second.encoding):
            return False
        return all(torch.equal(self._of(key, a), self._of(key, b)) for key in self._pixels)

    def _of(self, key: str, b: int) -> Tensor:
        span = self._spans[key][b]
        return self._pixels[key][span.start : span.stop]

    def of(self, groups: Sequence[_Group]) -> dict[str, Tensor]:
        """The values of the first row of each group, one after the other."""
        chosen = [group.rows[0] for group in groups]
        if chosen == list(range(len(self._rows))):
            return dict(self._pixels)
        return {key: torch.cat([self._of(key, b) for b in chosen]) for key in self._pixels}


def _pictures(batch: Batch) -> _Pictures | None:
    """Entries by row: one per row, one per picture, or else in proportion to the row's picture positions.

    None where that is not clear, or where a value is one per token.
    """
    counts = [len(row.images) for row in batch.rows]
    marks = [0] * len(counts) if batch.image_BT is None else batch.image_BT.sum(1).tolist()
    spans = {}
    for key, value in batch.pixels.items():
        by_token = value.ndim > 1 and tuple(value.shape[:2]) == tuple(batch.input_ids_BT.shape)
        sizes = [1] * len(counts) if key in batch.row_keys else _split(len(value), counts, marks)
        if by_token or sizes is None:
            return None
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        spans[key] = [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    return _Pictures(batch.rows, batch.pixels, spans)


def _split(entries: int, counts: Sequence[int], marks: Sequence[int]) -> list[int] | None:
    if entries == sum(counts):
        return list(counts)
    total = sum(marks)
    if not total or any(entries * n % total for n in marks):
        return None
    return [entries * n // total for n in marks]


def like_probe(batch: Batch) -> Batch:
    """The batch with a changed copy of its first row in front, which shares that row's pictures: rows to try packs on.

    The batch itself where its pictures cannot be told apart by row.
    """
    pictures = _pictures(batch)
    if pictures is None:
        return batch
    ids_T, labels_T = batch.input_ids_BT[0].clone(), batch.labels_BT[0].clone()
    last = (
        int(batch.image_BT[0].nonzero()[-1]) + 1 if batch.image_BT is not None and bool(batch.image_BT[0].any()) else 1
    )
    end = int(batch.attention_BT[0].sum())
    ids_T[last:end] = ids_T[last:end].flip(0)
    labels_T[labels_T != -100] = ids_T[labels_T != -100]
    first = [_Group((0,)), *(_Group((b,)) for b in range(len(batch.rows)))]

    def above(row_T: Tensor, rows_BT: Tensor) -> Tensor:
        return torch.cat([row_T[None], rows_BT])

    return replace(
        batch,
        rows=(batch.rows[0], *batch.rows),
        input_ids_BT=above(ids_T, batch.input_ids_BT),
        labels_BT=above(labels_T, batch.labels_BT),
        attention_BT=above(batch.attention_BT[0], batch.attention_BT),
        image_BT=None if batch.image_BT is None else above(batch.image_BT[0], batch.image_BT),
        pixels=pictures.of(first),
        views=(),
    )


# ---- laying out -----------------------------------------------------------------------------------------------------
def _laid_out(batch: Batch, groups: Sequence[_Group], needed: Sequence[int], pictures: _Pictures) -> Pack:
    place_BT = torch.full_like(batch.input_ids_BT, -1)
    ids, positions, runs, at = [], [], [], 0

    def add(b: int, first: int, last: int, prefix: int, shared: int) -> None:
        nonlocal at
        if last > first:
            ids.append(batch.input_ids_BT[b, first:last])
            positions.append(torch.arange(first, last))
            runs.append(Run(at, last - first, prefix, shared))
            place_BT[b, first:last] = torch.arange(at, at + last - first)
            at += last - first

    for group in groups:
        start = at
        if group.shared:
            add(group.rows[0], 0, group.shared, 0, 0)
        for b in group.rows:
            place_BT[b, : group.shared] = torch.arange(start, start + group.shared)
            add(b, group.shared, needed[b], start if group.shared else 0, group.shared)
    return Pack(torch.cat(ids), torch.cat(positions), place_BT, pictures.of(groups), tuple(runs))
