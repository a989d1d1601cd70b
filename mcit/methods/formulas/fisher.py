"""Pure functions of quadratic anchors with importances. Shapes: any, alike; O out features, I in features, R rank."""

from __future__ import annotations

import torch
from torch import Tensor


def anchor_distance(now: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
    """``sum F (w - w*)^2``, a scalar."""
    return (importance * (now - anchor).square()).sum()


def update_distance(
    B_OR: Tensor, A_RI: Tensor, B0_OR: Tensor, A0_RI: Tensor, importance_OI: Tensor, scale: float
) -> Tensor:
    """``sum F (s (B A - B0 A0))^2``: the same for the effective weight of a LoRA pair, a scalar."""
    change_OI = torch.addmm(B_OR @ A_RI, B0_OR, A0_RI, alpha=-1)
    return scale**2 * (importance_OI * change_OI.square()).sum()
