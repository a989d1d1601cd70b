"""The gated MLP of a block, ``down(silu(gate(x)) * up(x))``, block by block of positions where no gradient is wanted.

What lies between its products then stays in the processor's caches, and no wide tensor is put together. For a CPU, and linears
that are plain or have a LoRA pair that may take the short way (`mcit.engine.loralinear`); anything else runs as it is.

Shapes: P positions, D width of the model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from mcit.engine.linears import blocks
from mcit.engine.loralinear import Linear, short_way

_LINEARS = ("gate_proj", "up_proj", "down_proj")


@contextlib.contextmanager
def gated(model: nn.Module) -> Iterator[None]:
    """Let the gated MLPs of a model go this way for as long as the block lasts."""
    modules = [module for module in model.modules() if _is_gated(module)]
    for module in modules:
        module.forward = functools.partial(_forward, module, module.forward)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _is_gated(module: nn.Module) -> bool:
    """By its parts, and by what its code makes of a few numbers."""
    if {name for name, _ in module.named_children()} != {*_LINEARS, "act_fn"} or "forward" in vars(module):
        return False
    gate, up, down, act = (getattr(module, name) for name in (*_LINEARS, "act_fn"))
    if not isinstance(act, (nn.SiLU, SiLUActivation)) or {type(x) for x in (gate, up, down)} - {nn.Linear, Linear}:
        return False
    weight = next(gate.parameters())
    if weight.device.type != "cpu":
        return False
    with torch.no_grad():
        x = torch.linspace(-1, 1, gate.in_features, dtype=weight.dtype)[None]
        return torch.equal(module(x), down(functional.silu(gate(x)) * up(x)))


def _forward(module: Any, own: Callable[..., Tensor], x: Tensor) -> Tensor:
    gate, up, down = linears = [getattr(module, name) for name in _LINEARS]
    if (
        torch.is_grad_enabled()
        or not x.numel()
        or not all(type(one) is nn.Linear or short_way(one, x) for one in linears)
    ):
        return own(x)
    flat_PD = x.reshape(-1, x.shape[-1])
    parts = flat_PD.split(blocks(len(flat_PD)))
    return torch.cat([down(functional.silu(gate(part)).mul_(up(part))) for part in parts]).view(*x.shape[:-1], -1)
