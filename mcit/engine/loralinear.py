"""A linear layer with one LoRA pair as a single autograd function: the same sums as peft's layer with fewer passes over memory.

``y = x W^T + b + s (x A^T) B^T`` is accumulated into one output, and the gradient of x into one tensor; peft's layer makes the
product, its scaling and the sum one after the other. Used where peft's own forward does exactly this: fp32, one active
adapter, a plain linear below, no dropout; everything else runs as peft has it.

Shapes: P positions, I in features, O out features, R rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mcit.core.optional import unseen
from mcit.engine.linears import product

with unseen("bitsandbytes"):
    from peft.tuners.lora import Linear


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, W_OI: Tensor, bias_O: Tensor | None, A_RI: Tensor, B_OR: Tensor, scale: float
    ) -> Tensor:
        low_PR = product(x_PI, A_RI)
        y_PO = product(x_PI, W_OI, bias_O).addmm_(low_PR, B_OR.T, alpha=scale)
        ctx.save_for_backward(x_PI, W_OI, A_RI, B_OR, low_PR)
        ctx.scale = scale
        return y_PO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_PO: Tensor) -> tuple[Tensor | None, ...]:
        x_PI, W_OI, A_RI, B_OR, low_PR = ctx.saved_tensors
        for_x, _, _, for_A, for_B, _ = ctx.needs_input_grad
        dlow_PR = product(dy_PO, B_OR.T).mul_(ctx.scale) if for_x or for_A else dy_PO[:0]
        dx_PI = dA_RI = dB_OR = None
        if for_x:
            dx_PI = product(dy_PO, W_OI.T).addmm_(dlow_PR, A_RI)
        if for_A:
            dA_RI = dlow_PR.T @ x_PI
        if for_B:
            dB_OR = (low_PR.T @ dy_PO).mul_(ctx.scale).T.contiguous()  # the wide matrix on the right: twice the rate
        return dx_PI, None, None, dA_RI, dB_OR, None


def fuse(model: nn.Module) -> list[Linear]:
    """Let every layer of peft's that can be take the short way where its inputs allow; returns them, for `unfuse`."""
    layers = [layer for layer in model.modules() if type(layer) is Linear and _plain(layer)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    return layers


def unfuse(layers: list[Linear]) -> None:
    """Peft's own forward again."""
    for layer in layers:
        vars(layer).pop("forward", None)


def _plain(layer: Linear) -> bool:
    base = layer.get_base_layer()
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    return type(base) is nn.Linear and frozen and not layer.fan_in_fan_out and not layer.lora_variant


def _forward(layer: Linear, own: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = short_way(layer, x) if not args and not kwargs else None
    if name is None:
        return own(x, *args, **kwargs)
    base, a, b = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
    out = _LoraLinear.apply(
        x.reshape(-1, x.shape[-1]), base.weight, base.bias, a.weight, b.weight, float(layer.scaling[name])
    )
    return out.view(*x.shape[:-1], -1)


def short_way(layer: Linear, x: Tensor) -> str | None:
    """The one active adapter, where everything is fp32, the base frozen, and nothing is dropped, merged or switched off."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or layer.disable_adapters or layer.merged or torch.is_autocast_enabled(x.device.type):
        return None
    (name,) = names
    base, a, b, dropout = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
    extra = a.bias is not None or b.bias is not None or type(a) is not nn.Linear  # a mixture of experts
    full = all(t.dtype == torch.float32 for t in (x, base.weight, a.weight, b.weight)) and not base.weight.requires_grad
    return name if full and not drops and not extra else None
