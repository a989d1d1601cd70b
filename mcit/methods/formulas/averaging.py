"""Pure functions of weight averages over time. Shapes: any; norms are L1, over a whole tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def moving_average(average: Tensor, now: Tensor, keep: Tensor | float) -> Tensor:
    """``keep * average + (1 - keep) * now``; exactly `now` for `keep` 0."""
    return torch.lerp(now, average, torch.as_tensor(keep, dtype=now.dtype, device=now.device))


def dynamic_share(
    now: Tensor,
    average: Tensor,
    gradient: Tensor,
    gradient_before: Tensor,
    *,
    before: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """``factor (1 + |g|) |w - w_before| / (|w - average| |g - g_before|)``, a scalar; without `before` that norm is left out.

    LCIA (arXiv:2410.10868), the dynamic EMA's closed form with norms for the differences. 0 / 0 is NaN, x / 0 infinite.
    """
    moved = 1.0 if before is None else (now - before).abs().sum()
    away = (now - average).abs().sum() * (gradient - gradient_before).abs().sum()
    return factor * (1 + gradient.abs().sum()) * moved / away


def within_unit(share: Tensor, fallback: float) -> tuple[Tensor, Tensor]:
    """The share where it lies between 0 and 1, else `fallback`; and whether it had to fall back (a boolean scalar)."""
    bad = ~((share > 0) & (share < 1))  # NaN is bad too
    return torch.where(bad, torch.full_like(share, fallback), share), bad


def towards_mean(now: Tensor, total: Tensor, count: int, share: float, times: int = 1) -> Tensor:
    """``(1 - share) now + share total / count``, taken `times` times: the rest of what `now` adds to the mean shrinks.

    MOS (arXiv:2412.09441), progressive merging. Exactly `now` for `share` 0 or no times.
    """
    return torch.lerp(now, total / count, 1 - (1 - share) ** times)
