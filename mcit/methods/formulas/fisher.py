"""Pure functions of quadratic anchors with importances. Shapes: any, alike; O out features, I in features, R rank, Q twice R,
T rows of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 1 << 18  # speed: weights of a tile: 1 MB, so that what is made of it stays in the processor's cache


def anchor_distance(now: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
    """``sum F (w - w*)^2``, a scalar."""
    return (importance * (now - anchor).square()).sum()


def update_distance(
    B_OR: Tensor, A_RI: Tensor, B0_OR: Tensor, A0_RI: Tensor, importance_OI: Tensor, scale: float
) -> Tensor:
    """``sum F (s (B A - B0 A0))^2``: the same for the effective weight of a LoRA pair, a scalar.

    Gradients reach B and A. With D the change and s the scale they are ``2 s^2 (F D) A^T`` and ``2 s^2 B^T (F D)``; they are
    made together with the value, a tile of rows at a time, so that nothing of the matrix's size is kept or read twice.
    """
    distance: Tensor = _UpdateDistance.apply(B_OR, A_RI, B0_OR, A0_RI, importance_OI, scale)
    return distance


class _UpdateDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, B_OR: Tensor, A_RI: Tensor, B0_OR: Tensor, A0_RI: Tensor, importance_OI: Tensor, scale: float
    ) -> Tensor:
        both_OQ, both_QI = torch.cat([B_OR, -B0_OR], dim=1), torch.cat([A_RI, A0_RI])
        dB_OR, dA_RI, sums = torch.empty_like(B_OR), torch.zeros_like(A_RI), []
        height = max(1, _TILE // A_RI.shape[1])
        for start in range(0, len(B_OR), height):
            rows = slice(start, start + height)
            change_TI = both_OQ[rows] @ both_QI
            weighted_TI = importance_OI[rows] * change_TI
            sums.append(torch.dot(weighted_TI.flatten(), change_TI.flatten()))
            dB_OR[rows] = weighted_TI @ A_RI.T
            dA_RI.addmm_(B_OR[rows].T, weighted_TI)
        ctx.save_for_backward(dB_OR, dA_RI)
        ctx.factor = scale**2
        return ctx.factor * torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dB_OR, dA_RI = ctx.saved_tensors
        factor = 2 * ctx.factor * grad
        return factor * dB_OR, factor * dA_RI, None, None, None, None
