"""Optimiser groups and learning-rate schedules. A schedule is a function of the step, so resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from mcit.core.schema import OptimConfig


def warmup_steps(config: OptimConfig, total: int) -> int:
    """Warm-up in steps: a share of `total` below 1, a number of steps from 1 on."""
    return math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)


def lr_factor(step: int, total: int, config: OptimConfig) -> float:
    """Factor of the learning rate at `step` (from 0) of `total`: linear warm-up, then cosine, linear or constant."""
    warm = warmup_steps(config, total)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    share = (step - warm) / max(1, total - warm)
    shape = 0.5 * (1 + math.cos(math.pi * share)) if config.schedule == "cosine" else 1 - share
    return config.min_lr_share + (1 - config.min_lr_share) * shape


def build_optimizer(
    named: Mapping[str, nn.Parameter], config: OptimConfig, *, is_projector: Callable[[str], bool]
) -> torch.optim.AdamW:
    """AdamW over groups {projector, rest} x {decay, no decay}; vectors (biases, norms) have no weight decay."""
    groups: dict[tuple[bool, bool], list[str]] = {}
    for name, parameter in named.items():
        groups.setdefault((is_projector(name), parameter.ndim > 1), []).append(name)
    settings = []
    for (projector, decays), names in sorted(groups.items()):
        lr = config.lr if config.lr_projector is None or not projector else config.lr_projector
        settings.append(
            {
                "params": [named[n] for n in names],
                "lr": lr,
                "base_lr": lr,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
        )
    return torch.optim.AdamW(settings, betas=config.betas, eps=config.eps)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's learning rate; the largest one is returned for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)
