"""Gradients that may not go against another one (A-GEM, arXiv:1812.00420, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor


def projection_factor(dot: Tensor, square: Tensor) -> Tensor:
    """What times r is added to g so that ``g.r`` is at least 0: ``-g.r / r.r`` where ``g.r < 0``, else 0.

    `dot` is g.r, `square` r.r; with r = 0 the factor is 0. No value is read from the device.
    """
    against = (dot < 0) & (square > 0)
    return torch.where(against, -dot / torch.where(against, square, torch.ones_like(square)), torch.zeros_like(dot))
