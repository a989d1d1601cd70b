"""Moves in weight space for smooth forget losses (arXiv:2502.05374), along gradients that were taken out of a step.

A sum of held gradients is a list of (gradient, factor); factors may be tensors, so that nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mcit.core.interfaces import Held, StepPasses
from mcit.core.types import WeightUnit

FORGET_STREAMS = ("forget", "refusal", "pair")
"""Streams whose loss is a forget loss."""
Sum = Sequence[tuple[Held, Tensor | float]]


def parted(streams: Sequence[str], smoothed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Streams of a step whose loss is smoothed, and the others."""
    return [s for s in streams if s in smoothed], [s for s in streams if s not in smoothed]


def along(parts: Sum) -> Callable[[WeightUnit, dict[str, Tensor]], None]:
    """A move by a sum of held gradients."""

    def move(unit: WeightUnit, tensors: dict[str, Tensor]) -> None:
        for held, factor in parts:
            for role, gradient in held.full(unit).items():
                tensors[role] += gradient.to(tensors[role].device) * factor

    return move


def inverse(norm: Tensor) -> Tensor:
    """``1 / norm``, and 0 for a norm of 0."""
    return torch.where(norm > 0, 1 / torch.where(norm > 0, norm, torch.ones_like(norm)), torch.zeros_like(norm))


def norm_of(step: StepPasses, parts: Sum) -> Tensor:
    """Euclidean norm of a sum of held gradients, from their inner products in fp64."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (a, x) in enumerate(parts):
        for k, (b, y) in enumerate(parts[: i + 1]):
            dot = step.dot(a, b)
            total = total.to(dot.device) + (1.0 if i == k else 2.0) * dot * x * y
    return total.clamp_min(0).sqrt()


def to_unit_tensors(held: Held, factor: float) -> Callable[[WeightUnit, dict[str, Tensor]], None]:
    """A move by `factor` along each tensor's own gradient of length 1; a tensor without gradient stays."""

    def move(unit: WeightUnit, tensors: dict[str, Tensor]) -> None:
        for role, gradient in held.full(unit).items():
            tensors[role] += factor * inverse(torch.linalg.vector_norm(gradient)) * gradient

    return move


def noise_of(
    unit: WeightUnit, tensors: Mapping[str, Tensor], sigma: float, seed: Callable[[str], int]
) -> dict[str, Tensor]:
    """Normal noise per tensor, from a seed by parameter name: the same on every engine and after a resume."""
    out = {}
    for role, tensor in tensors.items():
        generator = torch.Generator().manual_seed(seed(unit.params[role]))
        out[role] = sigma * torch.randn(tensor.shape, generator=generator).to(tensor.device)
    return out
