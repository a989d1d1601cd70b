"""Selective synaptic dampening (arXiv:2308.07707) of one matrix, and the choice of its threshold. Shapes: any, alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLED = 1 << 16
"""Entries of a matrix that a percentile looks at, evenly spaced."""


def selected(all_rows: Tensor, forget: Tensor, alpha: float) -> Tensor:
    """True where the importance for the rows to forget is more than `alpha` times that for all rows."""
    return forget > alpha * all_rows


def kept_share(all_rows: Tensor, forget: Tensor, *, alpha: float, strength: float) -> Tensor:
    """What a weight is multiplied by: ``min(strength * I_D / I_f, 1)`` where it is selected, else 1."""
    share = (strength * all_rows / forget.clamp_min(torch.finfo(forget.dtype).tiny)).clamp_max(1)
    return torch.where(selected(all_rows, forget, alpha), share, torch.ones_like(share))


def ratios(all_rows: Tensor, forget: Tensor) -> Tensor:
    """Evenly spaced entries of ``I_f / I_D``; infinite where only I_D is 0, 0 where both are."""
    d, f = all_rows.flatten(), forget.flatten()
    step = max(1, -(-len(d) // SAMPLED))
    d, f = d[::step], f[::step]
    return torch.where(f > 0, f / d, torch.zeros_like(f))


def percentile(parts: Sequence[Tensor], percent: float) -> float:
    """The value below which so many percent of all entries lie (the largest such entry)."""
    every = torch.cat([part.flatten() for part in parts]).sort().values
    return float(every[min(len(every) - 1, int(percent / 100 * len(every)))])
