"""Rotary positions as one autograd function: the same rotation with fewer passes over memory, forward and backward.

transformers' attention calls a function of its module, ``apply_rotary_pos_emb``, whose halves are cut apart and put together in
passes of their own, and in more of them for the gradient. Where that function is the usual one, another one is put in its
place: for fp32 on a CPU, where a gradient is wanted; it hands over everything else. Values are the same to the last bit, so
that what is computed with and without a gradient stays alike; gradients are so up to the order of sums. It stays when an engine
has ended.

Shapes: (..., P, E), P positions, E width of a head; cos and sin are as wide.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_NAME = "apply_rotary_pos_emb"
_Pair = tuple[Tensor, Tensor]


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].sub_(x[..., half:] * sin[..., :half])  # the same roundings as in the usual function
        out[..., half:].add_(x[..., :half] * sin[..., half:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = dy.shape[-1] // 2
        dx = dy * cos
        dx[..., :half].addcmul_(dy[..., half:], sin[..., half:])
        dx[..., half:].addcmul_(dy[..., :half], sin[..., :half], value=-1)
        return dx, None, None


def shorten_rotation(model: nn.Module) -> None:
    """Put the short way into the modules that hold the attention of a model on a CPU, where they have the usual function."""
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return
    modules = {type(module).__module__ for module in model.modules() if type(module).__name__.endswith("Attention")}
    for name in sorted(modules):
        module = sys.modules.get(name)
        own = getattr(module, _NAME, None)
        if own is not None and not isinstance(own, functools.partial) and _usual(own):
            setattr(module, _NAME, functools.partial(_rotated, own))


def _usual(own: Callable[..., _Pair]) -> bool:
    """By what its code makes of a few numbers."""
    q, k = torch.linspace(-1, 2, 48).view(1, 2, 3, 8), torch.linspace(2, -1, 24).view(1, 1, 3, 8)
    cos, sin = torch.linspace(0, 1, 24).view(1, 3, 8), torch.linspace(-1, 0.5, 24).view(1, 3, 8)
    try:
        found = own(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, _turned(q, k, cos, sin), strict=True))


def _turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> _Pair:
    wide = cos.unsqueeze(1), sin.unsqueeze(1)
    return _Turn.apply(q, *wide), _Turn.apply(k, *wide)


def _rotated(own: Callable[..., _Pair], *args: Any, **kwargs: Any) -> _Pair:
    if len(args) == 4 and not kwargs and torch.is_grad_enabled():
        q, k, cos, sin = args
        plain = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in args)
        learns = (q.requires_grad or k.requires_grad) and not (cos.requires_grad or sin.requires_grad)
        if plain and learns and q.shape[-1] == k.shape[-1] == cos.shape[-1] and not q.shape[-1] % 2:
            return _turned(q, k, cos, sin)
    return own(*args, **kwargs)
