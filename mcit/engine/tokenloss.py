"""Cross entropy of many tokens over a large vocabulary, some tokens at a time.

The plain way makes an fp32 copy of the logits (where they are bf16) and a table of log probabilities of the same size that is
kept for backward. Here both exist for some rows at a time: only one number per token is kept beside the logits.
Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LARGE = 1 << 23
"""Logits from which on the loss is made in parts: 32 MB of fp32."""
_PART = 1 << 20
"""Logits of a part."""


def token_losses(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target, fp32, (N,)."""
    if logits_NV.numel() < _LARGE:
        return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    losses: Tensor = _TokenLosses.apply(logits_NV, targets_N)
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        parts = [part.float().logsumexp(1) for part in logits_NV.split(_rows(logits_NV))]
        total_N = torch.cat(parts)
        ctx.save_for_backward(logits_NV, targets_N, total_N)
        return total_N - logits_NV.gather(1, targets_N[:, None])[:, 0].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, targets_N, total_N = ctx.saved_tensors
        size = _rows(logits_NV)
        out_NV = torch.empty_like(logits_NV)
        split = zip(*(x.split(size) for x in (out_NV, logits_NV, targets_N, total_N, d_N)), strict=True)
        for out, logits, targets, total, d in split:
            share = (logits.float() - total[:, None]).exp_()
            share.scatter_add_(1, targets[:, None], share.new_full((len(targets), 1), -1.0))
            out.copy_(share.mul_(d[:, None]))
        return out_NV, None


def _rows(logits_NV: Tensor) -> int:
    return max(1, _PART // logits_NV.shape[1])
