"""Optimiser groups and learning-rate schedules. A schedule is a function of the step, so resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from mcit.core.errors import PlanError
from mcit.core.optional import needed
from mcit.core.schema import OptimConfig

SMALLEST = 4096
"""Numbers from which on a tensor has 8-bit moments (bitsandbytes' default; given explicitly so that it cannot drift)."""
EIGHT_BIT = frozenset({"adamw8bit", "paged_adamw8bit"})
PAGED = frozenset({"paged_adamw", "paged_adamw8bit"})
NEEDS_CUDA = (
    "pages moments between GPU and host memory, which a CPU cannot do",
    "use adamw or adamw8bit on a CPU, or a machine with a GPU (engine.device: cuda)",
)
FUSED = frozenset({"cuda"})
"""Devices whose AdamW is one kernel over all tensors. torch has one for the CPU too, whose last bits differ."""
_CLASSES = {"adamw8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw8bit": "PagedAdamW8bit"}


def warmup_steps(config: OptimConfig, total: int) -> int:
    """Warm-up in steps: a share of `total` below 1, a number of steps from 1 on."""
    return math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)


def lr_factor(step: int, total: int, config: OptimConfig) -> float:
    """Factor of the learning rate at `step` (from 0) of `total`: linear warm-up, then cosine, linear or constant.

    With ``warmup_from: zero`` it is what transformers' schedules of these names give.
    """
    warm = warmup_steps(config, total)
    if step < warm:
        return (step + (config.warmup_from == "first")) / warm
    if config.schedule == "constant":
        return 1.0
    share = (step - warm) / max(1, total - warm)
    shape = 0.5 * (1 + math.cos(math.pi * share)) if config.schedule == "cosine" else 1 - share
    return config.min_lr_share + (1 - config.min_lr_share) * shape


def build_optimizer(
    named: Mapping[str, nn.Parameter],
    config: OptimConfig,
    *,
    is_projector: Callable[[str], bool],
    is_vision: Callable[[str], bool] = lambda name: False,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """AdamW over groups {projector, rest} x {decay, no decay}; vectors (biases, norms) have no weight decay.

    What only images reach is in groups of its own, which an engine that steps by group can leave alone in a step without.
    With `fused` AdamW is one kernel over all tensors where their device has it.

    Kinds other than ``adamw`` are bitsandbytes'; 8-bit moments: Dettmers et al., ICLR 2022, arXiv:2110.02861.
    Raises PlanError for a paged kind on parameters in host memory, ConfigError without bitsandbytes.
    """
    groups: dict[tuple[bool, bool, bool], list[str]] = {}
    for name, parameter in named.items():
        groups.setdefault((is_projector(name), parameter.ndim > 1, is_vision(name)), []).append(name)
    settings = []
    for (projector, decays, _), names in sorted(groups.items()):
        lr = config.lr if config.lr_projector is None or not projector else config.lr_projector
        settings.append(
            {
                "params": [named[n] for n in names],
                "lr": lr,
                "base_lr": lr,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
        )
    if config.kind == "adamw":
        one = fused and bool(named) and all(p.device.type in FUSED for p in named.values())
        return torch.optim.AdamW(settings, betas=config.betas, eps=config.eps, fused=one or None)
    if config.kind in PAGED and any(p.device.type != "cuda" for p in named.values()):
        raise PlanError(f"{config.kind} {NEEDS_CUDA[0]}", where="optim.kind", fix=NEEDS_CUDA[1])
    made: torch.optim.Optimizer = getattr(needed("bitsandbytes", where="optim.kind").optim, _CLASSES[config.kind])(
        settings,
        betas=config.betas,
        eps=config.eps,
        **({"min_8bit_size": SMALLEST} if config.kind in EIGHT_BIT else {}),
    )
    return made


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an update is skipped where ``found_inf`` is 1, without the host knowing."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def moment_line(named: Mapping[str, nn.Parameter], config: OptimConfig) -> str | None:
    """In words, which moments are 8-bit and which are not; None where all are 32-bit."""
    if config.kind not in EIGHT_BIT:
        return None
    sizes = [p.numel() for p in named.values()]
    large = [size for size in sizes if size >= SMALLEST]
    return (
        f"{config.kind}: 8-bit moments for {len(large)} of {len(sizes)} tensors ({sum(large):,} of {sum(sizes):,} numbers); "
        f"tensors below {SMALLEST:,} numbers keep 32-bit ones"
    )


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's learning rate; the largest one is returned for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)
