"""Attention over a pack, run by run, as an attention function of transformers.

A dense mask over the whole pack costs more than the padding it saves. On a CPU in fp32 every run is a slice of the pack
(`mcit.engine.spans`). Elsewhere runs of like length are gathered into small batches: runs without a prefix need no mask at
all, runs behind a prefix one of their own small size. On a GPU in half precision all runs go through FlashAttention's kernel
for sequences of unlike length (torch's ``varlen_attn``), whose causal mask is aligned to the end of the keys: each run has its
prefix and itself as keys.

Shapes: P positions of a pack, H heads, K heads of keys and values, E width of a head, n runs of a bucket, Q their longest
length, S their longest prefix.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mcit.engine.pack import Run
from mcit.engine.spans import Spans, takes
from mcit.engine.transfer import to_device

varlen_attn: Callable[..., Tensor] | None = None
with contextlib.suppress(ImportError):
    from torch.nn.attention.varlen import varlen_attn  # type: ignore[assignment]
if varlen_attn is not None and "window_size" not in inspect.signature(varlen_attn).parameters:
    varlen_attn = None  # torch 2.10: another causal mask

NAME = "mcit_segments"
_LIKE = 0.75
"""Runs share a bucket when the shorter has at least this share of the longer one's length."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Runs that are attended to together, padded to one length."""

    count: int
    queries: Tensor
    """(n * Q,) places in the pack; any place where a run is shorter."""
    keys: Tensor
    """(n * (S + Q),), or `queries` itself without prefixes."""
    mask: Tensor | None
    """(n or 1, 1, Q, S + Q) bool; None is causal."""


@dataclass(frozen=True, slots=True)
class _Flat:
    """Runs as sequences of unlike length."""

    keys: Tensor
    """Places of all runs' keys, one run after the other."""
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]


class Layout(Protocol):
    """Who attends to what among the positions of one sequence."""

    def attend(
        self, query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor, scale: float | None, *, layer: int = 0
    ) -> Tensor:
        """Attention of every position in a layer of the decoder, (P, H, E)."""


class Segments:
    """How the runs of a pack are attended to, on one device."""

    def __init__(self, runs: Sequence[Run], device: torch.device, *, half: bool = False) -> None:
        """`half`: queries will be in half precision."""
        self.flat = _flat(runs, device) if half and device.type == "cuda" and varlen_attn is not None else None
        self.spans = Spans(runs) if not half and device.type == "cpu" else None
        self._runs, self._device = runs, device

    @functools.cached_property
    def buckets(self) -> tuple[list[_Bucket], Tensor]:
        """Runs of like length together, and where in their outputs each position is."""
        groups = _alike(self._runs)
        back_P = to_device(_back(groups, sum(run.length for run in self._runs)), self._device)
        return [_bucket(group, self._device) for group in groups], back_P

    def attend(
        self, query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor, scale: float | None, *, layer: int = 0
    ) -> Tensor:
        """Attention of every position, (P, H, E); the same in every layer."""
        if self.flat is not None and varlen_attn is not None:
            return _varlen(varlen_attn, self.flat, query_PHE, key_PKE, value_PKE, scale)
        if self.spans is not None and takes(query_PHE, key_PKE, value_PKE):
            return self.spans.attend(query_PHE, key_PKE, value_PKE, scale)
        heads, (buckets, back_P) = query_PHE.shape[1] // key_PKE.shape[1], self.buckets
        parts = [_attend(bucket, query_PHE, key_PKE, value_PKE, scale, heads) for bucket in buckets]
        return torch.cat(parts).index_select(0, back_P)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: SDPA as ever, or with `segments` that of a pack; heads before positions in, after them out."""
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query_PHE, key_PKE, value_PKE = (x[0].transpose(0, 1) for x in (query, key, value))
    out_PHE = segments.attend(query_PHE, key_PKE, value_PKE, scaling, layer=getattr(module, "layer_idx", 0))
    return out_PHE.unsqueeze(0), None


def register() -> None:
    """Make the function known to transformers by `NAME`; without a pack its masks are those of SDPA."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


# ---- buckets --------------------------------------------------------------------------------------------------------
def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of like length, and of like prefixes, in buckets."""
    out: list[list[Run]] = []
    for run in sorted(runs, key=lambda r: (-r.shared, -r.length, r.start)):
        longest = out[-1][0] if out else None
        fits = longest is not None and bool(run.shared) == bool(longest.shared)
        if (
            fits
            and longest is not None
            and run.shared >= _LIKE * longest.shared
            and run.length >= _LIKE * longest.length
        ):
            out[-1].append(run)
        else:
            out.append([run])
    return out


def _bucket(runs: Sequence[Run], device: torch.device) -> _Bucket:
    queries, prefix = max(run.length for run in runs), max(run.shared for run in runs)
    starts, lengths = (torch.tensor([getattr(run, x) for run in runs])[:, None] for x in ("start", "length"))
    own = starts + torch.arange(queries).clamp(max=lengths - 1)
    if not prefix:
        flat = to_device(own.flatten(), device)
        return _Bucket(len(runs), flat, flat, None)
    before, shared = (torch.tensor([getattr(run, x) for run in runs])[:, None] for x in ("prefix", "shared"))
    seen = before + torch.arange(prefix).clamp(max=shared - 1)
    mask = torch.ones(len(runs), 1, queries, prefix + queries, dtype=torch.bool)
    mask[..., :prefix] = (torch.arange(prefix) < shared)[:, None, None]
    mask[..., prefix:] = torch.ones(queries, queries, dtype=torch.bool).tril()
    if bool((shared == prefix).all()):
        mask = mask[:1]
    keys = torch.cat([seen, own], dim=1).flatten()
    return _Bucket(len(runs), *(to_device(x, device) for x in (own.flatten(), keys, mask)))


def _back(groups: Sequence[Sequence[Run]], positions: int) -> Tensor:
    """(P,): where the output of a position is among those of all buckets."""
    back_P, at = torch.empty(positions, dtype=torch.int64), 0
    for runs in groups:
        longest = max(run.length for run in runs)
        for run in runs:
            back_P[run.start : run.start + run.length] = torch.arange(at, at + run.length)
            at += longest
    return back_P


def _attend(
    bucket: _Bucket, query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor, scale: float | None, heads: int
) -> Tensor:
    """(n * Q, H, E)."""
    query, key, value = (
        _gathered(x, places, bucket.count)
        for x, places in ((query_PHE, bucket.queries), (key_PKE, bucket.keys), (value_PKE, bucket.keys))
    )
    if heads > 1:
        key, value = (x.repeat_interleave(heads, dim=1) for x in (key, value))
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=bucket.mask, scale=scale, is_causal=bucket.mask is None
    )
    return out.transpose(1, 2).flatten(0, 1)


def _gathered(x_PHE: Tensor, places: Tensor, count: int) -> Tensor:
    """(n, H, positions, E)."""
    return x_PHE.flatten(1).index_select(0, places).view(count, -1, *x_PHE.shape[1:]).transpose(1, 2)


# ---- sequences of unlike length -------------------------------------------------------------------------------------
def _flat(runs: Sequence[Run], device: torch.device) -> _Flat:
    keys, query_sizes, key_sizes = [], [0], [0]
    for run in runs:
        keys += [torch.arange(run.prefix, run.prefix + run.shared), torch.arange(run.start, run.start + run.length)]
        query_sizes.append(run.length)
        key_sizes.append(run.shared + run.length)

    def ends(sizes: list[int]) -> Tensor:
        return to_device(torch.tensor(sizes).cumsum(0).to(torch.int32), device)

    return _Flat(
        to_device(torch.cat(keys), device), ends(query_sizes), ends(key_sizes), (max(query_sizes), max(key_sizes))
    )


def _varlen(
    kernel: Callable[..., Tensor],
    flat: _Flat,
    query_PHE: Tensor,
    key_PKE: Tensor,
    value_PKE: Tensor,
    scale: float | None,
) -> Tensor:
    if torch.is_autocast_enabled(query_PHE.device.type):  # which does not know the kernel
        dtype = torch.get_autocast_dtype(query_PHE.device.type)
        query_PHE, key_PKE, value_PKE = (x.to(dtype) for x in (query_PHE, key_PKE, value_PKE))
    more, heads = dict[str, bool](), query_PHE.shape[1] // key_PKE.shape[1]
    if heads > 1 and "enable_gqa" in inspect.signature(kernel).parameters:
        more["enable_gqa"] = True
    elif heads > 1:  # torch 2.11
        key_PKE, value_PKE = (x.repeat_interleave(heads, dim=1) for x in (key_PKE, value_PKE))
    return kernel(
        query_PHE.contiguous(),
        key_PKE.index_select(0, flat.keys),
        value_PKE.index_select(0, flat.keys),
        flat.query_ends,
        flat.key_ends,
        *flat.longest,
        scale=scale,
        window_size=(-1, 0),  # causal, aligned to the end of the keys
        **more,
    )
