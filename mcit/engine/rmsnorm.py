"""RMS norms as one autograd function: torch's own steps, forward and backward, with fewer passes over memory.

For norms that compute ``w x / sqrt(mean(x^2) + eps)`` in fp32 on a CPU, where a gradient is wanted; anything else runs as
it is.

Shapes: D width of the model; all other dimensions are positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        rate = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, rate)
        return torch.mul(x, rate).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_D, rate = ctx.saved_tensors
        d_weight_D = (dy * x).mul_(rate).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight_D, None
        dx = dy * weight_D
        towards = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(rate.pow(3)).div_(x.shape[-1])
        return dx.mul_(rate).addcmul_(x, towards, value=-1), d_weight_D, None


def shorten(model: nn.Module) -> list[nn.Module]:
    """Let the RMS norms of a model go this way where it may; returns them, for `lengthen`."""
    norms = [module for module in model.modules() if "forward" not in vars(module) and _eps(module) is not None]
    for norm in norms:
        norm.forward = functools.partial(_forward, norm, norm.forward)
    return norms


def lengthen(norms: list[nn.Module]) -> None:
    """Their own forward again."""
    for norm in norms:
        vars(norm).pop("forward", None)


def _eps(module: nn.Module) -> float | None:
    """That of an RMS norm: by its one parameter, its name for it, and what its code makes of a few numbers."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if [name for name, _ in module.named_parameters()] != ["weight"] or not isinstance(eps, float):
        return None
    if (
        not isinstance(weight, Tensor)
        or weight.ndim != 1
        or weight.dtype != torch.float32
        or weight.device.type != "cpu"
    ):
        return None
    with torch.no_grad():
        x = torch.linspace(-1, 2, weight.numel())[None]
        return eps if torch.allclose(module(x), _Norm.apply(x, weight, eps), rtol=1e-6, atol=1e-7) else None


def _forward(norm: Any, own: Callable[..., Tensor], x: Tensor) -> Tensor:
    plain = x.dtype == torch.float32 and norm.weight.dtype == torch.float32 and x.device.type == "cpu"
    if not plain or not torch.is_grad_enabled() or not (x.requires_grad or norm.weight.requires_grad):
        return own(x)
    out: Tensor = _Norm.apply(x, norm.weight, norm.variance_epsilon)
    return out
