"""Attention over a pack on a CPU in fp32: each run to itself, all runs behind a prefix at once to it, both put together.

Runs lie one after the other and those of a prefix behind it, so both parts are slices of the pack: nothing is gathered, padded
or masked, a prefix's keys are never repeated, and their gradients come out summed. Torch's flash kernel gives with each part
the logarithm of its sum of exponentials; a position's attention is the mean of the parts weighted by those sums, and the
kernel's backward pass, given the output and the sums of both together, gives the gradients of each part.

Shapes: P positions of a pack, H heads, K heads of keys and values, h = H / K, E width of a head; (B, h, P, E) is what the
kernel reads, with B = 1 and h = H, or with B = K where heads share keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcit.engine.pack import Run

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_Span = tuple[int, int]
"""First position, and the one behind the last."""


class Spans:
    """The runs of a pack as slices."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.own: list[_Span] = []
        """Of each run, in the order of the pack."""
        self.behind: list[tuple[_Span, _Span]] = []
        """All runs of a prefix, and the prefix."""
        for run in sorted(runs, key=lambda r: r.start):
            self.own.append((run.start, run.start + run.length))
            prefix = (run.prefix, run.prefix + run.shared)
            if not run.shared:
                continue
            if self.behind and self.behind[-1][0][1] == run.start and self.behind[-1][1] == prefix:
                self.behind[-1] = ((self.behind[-1][0][0], run.start + run.length), prefix)
            else:
                self.behind.append((self.own[-1], prefix))

    def attend(self, query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor, scale: float | None) -> Tensor:
        """Attention of every position, (P, H, E)."""
        out: Tensor = _Attention.apply(query_PHE, key_PKE, value_PKE, self, scale)
        return out


def takes(query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor) -> bool:
    """Whether the kernel does what is wanted of these."""
    alike = query_PHE.shape[-1] == key_PKE.shape[-1] == value_PKE.shape[-1]
    return alike and all(x.dtype == torch.float32 and x.stride(-1) == 1 for x in (query_PHE, key_PKE, value_PKE))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor, spans: Spans, scale: float | None
    ) -> Tensor:
        query, key, value = _for_kernel(query_PHE, key_PKE, value_PKE)
        parts = [_kernel(*(_cut(x, own) for x in (query, key, value)), 0.0, True, scale=scale) for own in spans.own]
        out = torch.cat([part.transpose(1, 2) for part, _ in parts], 1).transpose(1, 2)
        sums = torch.cat([part for _, part in parts], 2)
        for runs, prefix in spans.behind:
            given = (_cut(query, runs), _cut(key, prefix), _cut(value, prefix))
            more, more_sums = _kernel(*given, 0.0, False, scale=scale)
            of_runs = _cut(sums, runs)
            _cut(out, runs).lerp_(more, torch.sigmoid(more_sums - of_runs).unsqueeze(-1))
            of_runs.copy_(torch.logaddexp(of_runs, more_sums))
        ctx.save_for_backward(query_PHE, key_PKE, value_PKE, out, sums)
        ctx.spans, ctx.scale = spans, scale
        return _of_queries(out, query_PHE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PHE: Tensor) -> tuple[Tensor | None, ...]:
        query_PHE, key_PKE, value_PKE, out, sums = ctx.saved_tensors
        query, key, value = _for_kernel(query_PHE, key_PKE, value_PKE)
        grad = _queries(grad_PHE if grad_PHE.stride(-1) == 1 else grad_PHE.contiguous(), key_PKE.shape[1])

        def gradients(of: _Span, seen: _Span, causal: bool) -> tuple[Tensor, ...]:
            given = (_cut(grad, of), _cut(query, of), _cut(key, seen), _cut(value, seen), _cut(out, of), _cut(sums, of))
            return tuple(x.transpose(1, 2) for x in _kernel_backward(*given, 0.0, causal, scale=ctx.scale))

        parts = [gradients(own, own, True) for own in ctx.spans.own]
        d_query, d_key, d_value = (torch.cat(part, 1).transpose(1, 2) for part in zip(*parts, strict=True))
        for runs, prefix in ctx.spans.behind:
            for whole, place, more in zip(
                (d_query, d_key, d_value), (runs, prefix, prefix), gradients(runs, prefix, False), strict=True
            ):
                _cut(whole, place).add_(more.transpose(1, 2))
        return _of_queries(d_query, query_PHE), _of_keys(d_key, key_PKE), _of_keys(d_value, value_PKE), None, None


def _cut(x: Tensor, span: _Span) -> Tensor:
    return x[:, :, span[0] : span[1]]


def _for_kernel(query_PHE: Tensor, key_PKE: Tensor, value_PKE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads = query_PHE.shape[1] // key_PKE.shape[1]
    return _queries(query_PHE, key_PKE.shape[1]), _keys(key_PKE, heads), _keys(value_PKE, heads)


def _queries(x_PHE: Tensor, keys: int) -> Tensor:
    if x_PHE.shape[1] == keys:
        return x_PHE.transpose(0, 1).unsqueeze(0)
    return x_PHE.unflatten(1, (keys, -1)).permute(1, 2, 0, 3)


def _keys(x_PKE: Tensor, heads: int) -> Tensor:
    x_KPE = x_PKE.transpose(0, 1)
    return x_KPE.unsqueeze(0) if heads == 1 else x_KPE.unsqueeze(1).expand(-1, heads, -1, -1)


def _of_queries(x: Tensor, like_PHE: Tensor) -> Tensor:
    """(P, H, E) of (B, h, P, E)."""
    return x[0].transpose(0, 1) if len(x) == 1 else x.permute(2, 0, 1, 3).reshape(like_PHE.shape)


def _of_keys(x: Tensor, like_PKE: Tensor) -> Tensor:
    """(P, K, E) of (B, h, P, E): summed over the heads that share keys."""
    return x[0].transpose(0, 1) if x.shape[1] == like_PKE.shape[1] and len(x) == 1 else x.sum(1).transpose(0, 1)
