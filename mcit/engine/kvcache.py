"""Keys and values of the rows of a pack, kept for decoding: a prefix that rows share once, what follows it row by row.

`Prefill` is attention over the pack, which leaves its keys and values here; `KeyCache` is attention of one new token per row.
Both are layouts of `mcit.engine.segments`: the model sees one sequence, first of the pack's positions, then of one per row.

Shapes: P positions of the pack, B rows, G prefixes, n most rows of a prefix, S longest prefix, Q most positions of a row
behind its prefix, L those and the new ones, H heads, K heads of keys and values, R = H / K, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcit.engine.pack import Pack
from mcit.engine.segments import Segments

_ROOM = 16
"""New positions that there is room for at first; then as many again as there are."""


@dataclass(slots=True)
class _Held:
    """Of one layer. Own positions end in the same column in every row, and so do new ones."""

    prefix_key_GKSE: Tensor
    prefix_value_GKSE: Tensor
    own_key_BKLE: Tensor
    own_value_BKLE: Tensor

    def write(self, at: int, key_BKE: Tensor, value_BKE: Tensor) -> None:
        if at == self.own_key_BKLE.shape[2]:
            self.own_key_BKLE, self.own_value_BKLE = map(_longer, (self.own_key_BKLE, self.own_value_BKLE))
        self.own_key_BKLE[:, :, at], self.own_value_BKLE[:, :, at] = key_BKE, value_BKE


class KeyCache:
    """Attention of one new token per row over what is kept of it."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        place_BT = pack.place_BT
        shared = _shared(place_BT)
        self._lengths = (place_BT >= 0).sum(1).tolist()
        firsts = place_BT[:, 0].tolist()
        starts = list(dict.fromkeys(firsts))
        sizes = {start: length for start, length in zip(firsts, shared, strict=True)}
        self._home = [starts.index(first) for first in firsts]  # the prefix of each row
        prefix_G = torch.tensor([sizes[start] for start in starts])
        own_B = torch.tensor(self._lengths) - prefix_G[self._home]
        longest, self._own = int(prefix_G.max()), int(own_B.max())
        start_G1, prefix_G1 = torch.tensor(starts)[:, None], prefix_G[:, None]
        column_S, column_Q = torch.arange(longest), torch.arange(self._own)
        self._prefix_GS = (start_G1 + column_S.minimum(prefix_G1 - 1)).to(device)
        at_BQ = (torch.tensor(self._lengths) - self._own)[:, None] + column_Q
        self._own_BQ = place_BT.gather(1, at_BQ.clamp(min=0)).clamp(min=0).to(device)
        self._prefix_mask_G1S = _mask(column_S[None] < prefix_G1, device)
        self._own_mask_B1Q = _mask(column_Q[None] >= self._own - own_B[:, None], device)
        self._layers: dict[int, _Held] = {}
        self._device, self._new = device, 0
        self._arrange()

    @property
    def layers(self) -> int:
        """Layers whose keys are kept."""
        return len(self._layers)

    def lasts(self, pack: Pack) -> Tensor:
        """(B,): the place of each row's last position in the pack."""
        return pack.place_BT.gather(1, torch.tensor(self._lengths)[:, None] - 1)[:, 0]

    def positions(self) -> Tensor:
        """(B,): the place in its row that each row's next token has."""
        return torch.tensor([length + self._new for length in self._lengths])

    def fill(self, layer: int, key_PKE: Tensor, value_PKE: Tensor) -> None:
        """Keep what a layer computed for the pack."""
        kept = []
        for x_PKE in (key_PKE, value_PKE):
            prefix = _picked(x_PKE, self._prefix_GS).contiguous()
            own = _picked(x_PKE, self._own_BQ)
            room = own.new_empty(*own.shape[:2], self._own + _ROOM, own.shape[3])
            room[:, :, : self._own] = own
            kept.append((prefix, room))
        (prefix_key, own_key), (prefix_value, own_value) = kept
        self._layers[layer] = _Held(prefix_key, prefix_value, own_key, own_value)

    def step(self) -> None:
        """The tokens of this pass count as written from here on."""
        self._new += 1

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, by place, in order; and prefixes that none of them has. One that is named twice is two
        rows from then on, with a prefix in common."""
        homes = sorted({self._home[b] for b in rows})
        at_B = torch.tensor(list(rows), device=self._device)
        at_G = torch.tensor(homes, device=self._device) if len(homes) < len(self._members) else None
        filled = self._own + self._new
        for held in self._layers.values():
            for name in ("own_key_BKLE", "own_value_BKLE"):
                old = getattr(held, name)
                new = old.new_empty(len(rows), *old.shape[1:])
                new[:, :, :filled] = old[:, :, :filled].index_select(0, at_B)
                setattr(held, name, new)
            if at_G is not None:
                held.prefix_key_GKSE = held.prefix_key_GKSE.index_select(0, at_G)
                held.prefix_value_GKSE = held.prefix_value_GKSE.index_select(0, at_G)
        if at_G is not None and self._prefix_mask_G1S is not None:
            self._prefix_mask_G1S = self._prefix_mask_G1S.index_select(0, at_G)
        if self._own_mask_B1Q is not None:
            self._own_mask_B1Q = self._own_mask_B1Q.index_select(0, at_B)
        self._lengths = [self._lengths[b] for b in rows]
        self._home = [homes.index(self._home[b]) for b in rows]
        self._arrange()

    def attend(
        self, query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor, scale: float | None, *, layer: int = 0
    ) -> Tensor:
        """(B, H, E): each row's token attends to its prefix, to what follows, and to itself, softmax in fp32."""
        held, at = self._layers[layer], self._own + self._new
        held.write(at, key_PKE, value_PKE)
        rows, heads, width = query_PHE.shape
        query_BKRE = query_PHE.view(rows, key_PKE.shape[1], -1, width) * (width**-0.5 if scale is None else scale)
        own_key, own_value = held.own_key_BKLE[:, :, : at + 1], held.own_value_BKLE[:, :, : at + 1]
        before = self._by_prefix(query_BKRE) @ held.prefix_key_GKSE.transpose(2, 3)
        if self._prefix_mask_G1S is not None:
            before += self._prefix_mask_G1S[:, None].to(before.dtype)
        before, after = self._by_row(before), query_BKRE @ own_key.transpose(2, 3)
        if self._own_mask_B1Q is not None:
            after[..., : self._own] += self._own_mask_B1Q[:, None].to(after.dtype)
        weights = torch.cat([before, after], -1).softmax(-1, dtype=torch.float32).to(value_PKE.dtype)
        seen = weights.split([before.shape[-1], after.shape[-1]], dim=-1)
        out = self._by_row(self._by_prefix(seen[0]) @ held.prefix_value_GKSE) + seen[1] @ own_value
        return out.reshape(rows, heads, width)

    # ---- rows of a prefix beside each other -------------------------------------------------------------------------
    def _arrange(self) -> None:
        members: list[list[int]] = [[] for _ in range(max(self._home) + 1)]
        for b, home in enumerate(self._home):
            members[home].append(b)
        self._members, self._most = members, max(map(len, members))
        slots = [b for rows in members for b in [*rows, *[rows[0]] * (self._most - len(rows))]]
        back = [home * self._most + members[home].index(b) for b, home in enumerate(self._home)]
        self._straight = slots == back == list(range(len(back)))
        self._slots, self._back_B = (torch.tensor(x, device=self._device) for x in (slots, back))

    def _by_prefix(self, x_BKRY: Tensor) -> Tensor:
        """(G, K, n * R, Y); any row where a prefix has fewer than n."""
        if not self._straight:
            x_BKRY = x_BKRY.index_select(0, self._slots)
        _, keys, each, last = x_BKRY.shape
        return x_BKRY.view(-1, self._most, keys, each, last).transpose(1, 2).reshape(-1, keys, self._most * each, last)

    def _by_row(self, x_GKNY: Tensor) -> Tensor:
        """(B, K, R, Y)."""
        groups, keys, each, last = x_GKNY.shape
        each //= self._most
        x = x_GKNY.view(groups, keys, self._most, each, last).transpose(1, 2).reshape(-1, keys, each, last)
        return x if self._straight else x.index_select(0, self._back_B)


class Prefill:
    """Attention over the pack, whose keys and values go into a cache."""

    def __init__(self, pack: Pack, cache: KeyCache, device: torch.device, *, half: bool) -> None:
        self._segments, self._cache = Segments(pack.runs, device, half=half), cache

    def attend(
        self, query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor, scale: float | None, *, layer: int = 0
    ) -> Tensor:
        """(P, H, E)."""
        self._cache.fill(layer, key_PKE, value_PKE)
        return self._segments.attend(query_PHE, key_PKE, value_PKE, scale)


def _shared(place_BT: Tensor) -> list[int]:
    """Positions of each row that other rows have too; all of a row that stands alone."""
    out = []
    for place_T in place_BT:
        same_BT = (place_BT == place_T) & (place_T >= 0)
        like = same_BT[same_BT[:, 0]].all(0)
        out.append(int(like.to(torch.int64).cumprod(0).sum()))
    return out


def _picked(x_PKE: Tensor, places: Tensor) -> Tensor:
    """(places[0], K, places[1], E)."""
    return x_PKE.index_select(0, places.flatten()).view(*places.shape, *x_PKE.shape[1:]).transpose(1, 2)


def _mask(allowed: Tensor, device: torch.device) -> Tensor | None:
    """What is added to scores, with an axis for heads; None where all is allowed."""
    if bool(allowed.all()):
        return None
    return torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[:, None].to(device)


def _longer(x_BKLE: Tensor) -> Tensor:
    length = x_BKLE.shape[2]
    out = x_BKLE.new_empty(*x_BKLE.shape[:2], 2 * length, x_BKLE.shape[3])
    out[:, :, :length] = x_BKLE
    return out
