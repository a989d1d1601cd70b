"""One unlearning step of refresh learning (arXiv:2403.13249) on one tensor."""

from __future__ import annotations

from torch import Tensor

TINY = 1e-20
"""Keeps the direction of a zero gradient zero."""


def unlearning_step(
    weight: Tensor,
    gradient: Tensor,
    noise: Tensor,
    fisher: Tensor | None,
    *,
    delta: float,
    noise_scale: float,
    damping: float,
) -> Tensor:
    """``delta * (n + noise_scale * noise) / (1 + damping * F)``, to be added to the weight.

    n goes along the gradient and has the norm of the weight: ``|w| / (|g| + 1e-20) * g``. All tensors have one shape and
    are fp32: a bf16 weight of 1 cannot take a step of 1e-5.
    """
    n = weight.norm() / (gradient.norm() + TINY) * gradient
    step = delta * (n + noise_scale * noise)
    return step if fisher is None else step / (1 + damping * fisher)
