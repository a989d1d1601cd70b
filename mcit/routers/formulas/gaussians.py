"""Classes as Gaussians of their features, and a linear head that is trained on samples of them.

MOS (Sun et al., AAAI 2025, arXiv:2412.09441), classifier alignment as in the released code: statistics with 1e-4 on the
diagonal of each covariance; every epoch draws equally many samples of each class, and SGD with momentum goes over them in
random order, at a rate that falls along a cosine.
Shapes: N rows, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

JITTER = 1e-4
"""Added to the diagonal of a covariance."""


def gaussian(x_ND: Tensor, *, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), or the variances (D,), jitter included; of one row the jitter alone."""
    x_ND = x_ND.double()
    mean_D = x_ND.mean(0)
    off_ND = (x_ND - mean_D) / max(1, len(x_ND) - 1) ** 0.5
    if diagonal:
        return mean_D.float(), (off_ND.square().sum(0) + JITTER).float()
    return mean_D.float(), (off_ND.T @ off_ND + JITTER * torch.eye(x_ND.shape[1], dtype=torch.float64)).float()


def samples(mean_D: Tensor, covariance: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws of a Gaussian, (count, D) fp32; `covariance` as `gaussian` gives it."""
    z_ND = torch.randn(count, len(mean_D), dtype=torch.float64, generator=generator)
    if covariance.ndim == 1:
        return (mean_D + z_ND * covariance.double().sqrt()).float()
    return (mean_D + z_ND @ torch.linalg.cholesky(covariance.double()).T).float()


def nearest_mean_head(mean_KD: Tensor, variance_KD: Tensor) -> dict[str, Tensor]:
    """``weight`` (K, D), ``bias`` (K), ``shift`` and ``scale`` (D): logits of ``(x - shift) / scale`` that say which mean is
    nearest, features measured in their pooled deviation."""
    shift_D, scale_D = mean_KD.mean(0), variance_KD.mean(0).sqrt()
    weight_KD = (mean_KD - shift_D) / scale_D
    return {"weight": weight_KD, "bias": -weight_KD.square().sum(1) / 2, "shift": shift_D, "scale": scale_D}


def aligned(
    head: dict[str, Tensor],
    classes: Sequence[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    *,
    epochs: int,
    count: int,
    lr: float,
    momentum: float = 0.9,
    decay: float = 5e-4,
) -> dict[str, Tensor]:
    """The head after cross-entropy on `count` samples of each Gaussian per epoch, in batches of `count`."""
    weight_KD, bias_K = head["weight"].clone(), head["bias"].clone()
    moving = [torch.zeros_like(weight_KD), torch.zeros_like(bias_K)]
    labels_N = torch.arange(len(classes)).repeat_interleave(count)
    for epoch in range(epochs):
        x_ND = torch.cat([samples(*one, count, generator) for one in classes])
        x_ND = (x_ND - head["shift"]) / head["scale"]
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for part in torch.randperm(len(x_ND), generator=generator).split(count):
            error_NK = torch.softmax(x_ND[part] @ weight_KD.T + bias_K, 1)
            error_NK[torch.arange(len(part)), labels_N[part]] -= 1
            error_NK /= len(part)
            steps = (error_NK.T @ x_ND[part] + decay * weight_KD, error_NK.sum(0) + decay * bias_K)
            for value, velocity, step in zip((weight_KD, bias_K), moving, steps, strict=True):
                velocity.mul_(momentum).add_(step)
                value.sub_(rate * velocity)
    return {**head, "weight": weight_KD, "bias": bias_K}
