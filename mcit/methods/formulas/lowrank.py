"""Pure functions of low-rank products. Shapes: O out features, I in features, R rank."""

from __future__ import annotations

import torch
from torch import Tensor


def product_distance2(B_OR: Tensor, A_RI: Tensor, B0_OR: Tensor, A0_RI: Tensor) -> Tensor:
    """``|B A - B0 A0|_F^2`` from Gram matrices, in O((O + I) R^2) instead of O(O I R).

    With U = [B, -B0] and V = [A; A0], ``|U V|^2 = sum((U^T U) * (V V^T))``.
    """
    U_OQ = torch.cat([B_OR, -B0_OR], dim=1)
    V_QI = torch.cat([A_RI, A0_RI], dim=0)
    return ((U_OQ.T @ U_OQ) * (V_QI @ V_QI.T)).sum()
