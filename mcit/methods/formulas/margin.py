"""The threshold-margin (TM) loss of GeRe and its parts, pure functions of tensors.

A reference activation is in one of three states per feature: low (at or below ``N``), middle, high (at or above ``P``).
The loss of a present activation is its distance to the interval that its state allows. States are stored as two planes of
one bit per feature, `high` and `low`; no bit is the middle, both bits are a feature that never varied (P = N).

Source: arXiv:2508.04676 and its authors' code (states with inclusive bounds, division by the number of violating elements).
Shapes: P positions, D features, C = ceil(D / 8) bytes, B rows; a row's positions lie one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to the number of violating elements."""


# ---- statistics ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation per feature, float64, shape (D,)."""

    count: int
    mean_D: Tensor
    m2_D: Tensor

    @property
    def std_D(self) -> Tensor:
        """Population standard deviation, float64; of nothing 0."""
        return (self.m2_D / self.count if self.count else self.m2_D).sqrt()


def moments_of(hidden_PD: Tensor) -> Moments:
    """Moments over positions, in float64; never negative, whatever the mean."""
    values = hidden_PD.detach().double()
    if not len(values):
        zero = values.new_zeros(values.shape[-1])
        return Moments(0, zero, zero.clone())
    mean = values.mean(0)
    return Moments(len(values), mean, (values - mean).square().sum(0))


def merged(one: Moments, other: Moments) -> Moments:
    """Moments of two sets together (Chan, Golub, LeVeque 1979): no difference of large squares."""
    if not one.count:
        return other
    if not other.count:
        return one
    count = one.count + other.count
    step = other.mean_D - one.mean_D
    mean = one.mean_D + step * (other.count / count)
    return Moments(count, mean, one.m2_D + other.m2_D + step.square() * (one.count * other.count / count))


def thresholds(moments: Moments, multiplier: float = 1.0) -> tuple[Tensor, Tensor]:
    """``(P, N)``: mean plus and minus `multiplier` standard deviations, fp32, shape (D,)."""
    reach = multiplier * moments.std_D
    return (moments.mean_D + reach).float(), (moments.mean_D - reach).float()


# ---- states ----------------------------------------------------------------------------------------------------------
def states(hidden_PD: Tensor, high_D: Tensor, low_D: Tensor) -> Tensor:
    """Both planes of the states, packed along the features: uint8, shape (P, 2, C); plane 0 is high, plane 1 low."""
    values = hidden_PD.detach().float()
    return torch.stack([pack(values >= high_D), pack(values <= low_D)], dim=-2)


def pack(bits: Tensor) -> Tensor:
    """Booleans (..., D) as bytes (..., C), feature 8c + k in bit k of byte c; the end is filled with zeros."""
    size = -(-bits.shape[-1] // 8)
    padded = torch.nn.functional.pad(bits, (0, 8 * size - bits.shape[-1])).unflatten(-1, (size, 8))
    weights = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=bits.device)
    return (padded.to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, features: int) -> Tensor:
    """The inverse of `pack`: booleans (..., D)."""
    weights = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) & weights).bool().flatten(-2)[..., :features]


# ---- loss ------------------------------------------------------------------------------------------------------------
def margin_losses(hidden_PD: Tensor, states_P2C: Tensor, high_PD: Tensor, low_PD: Tensor) -> Tensor:
    """Loss of every element, fp32 (float64 stays so), shape (P, D); `high_PD` and `low_PD` are the thresholds (they broadcast).

    low: ``max(0, h - N)``; middle: ``max(0, h - P) + max(0, N - h)``; high: ``max(0, P - h)``. The gradient reaches only
    `hidden_PD`: sign of the violation, 0 where there is none and exactly at a threshold.
    """
    values = hidden_PD if hidden_PD.dtype == torch.float64 else hidden_PD.float()
    is_high, is_low = unpack(states_P2C, values.shape[-1]).unbind(-2)
    infinity = torch.tensor(torch.inf, dtype=values.dtype, device=values.device)
    above = torch.where(is_low, low_PD, torch.where(is_high, infinity, high_PD))
    below = torch.where(is_high, high_PD, torch.where(is_low, -infinity, low_PD))
    return (values - values.detach().clamp(below, above)).abs()


def row_margins(losses_PD: Tensor, lengths: Sequence[int]) -> Tensor:
    """``sum(l) / (number of l != 0 + 1e-8)`` of each row, shape (B,): the mean depth of a row's violations.

    `lengths` are the rows' positions. The count carries no gradient. This is the authors' reduction at one row per batch.
    """
    violating_P = (losses_PD.detach() != 0).sum(-1)
    sums_P = losses_PD.sum(-1)
    depth = torch.stack([part.sum() for part in sums_P.split(list(lengths))])
    count = torch.stack([part.sum() for part in violating_P.split(list(lengths))])
    return depth / (count + EPSILON)


def batch_margin(losses_PD: Tensor) -> Tensor:
    """The same over all rows of a micro-batch together: the authors' reduction, not linear in the batch."""
    return losses_PD.sum() / ((losses_PD.detach() != 0).sum() + EPSILON)


def at_precision(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` in fp32, rounded to `dtype`; the gradient is that of the values themselves."""
    exact = values.float()
    return exact + (exact.detach().to(dtype).float() - exact.detach())


def row_means(values_PD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean element of each row, shape (B,)."""
    return torch.stack([part.mean() for part in values_PD.split(list(lengths))])
