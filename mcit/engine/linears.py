"""Linear layers through oneDNN where that is faster than what torch takes: the same fp32 products, summed in another order.

Torch's fp32 linears on a CPU are MKL's, which leaves half the width of the registers of AMD processors with AVX-512 unused;
oneDNN, which torch carries as well, does not: about twice the rate (docs/performance.md). It compiles a kernel for every
shape and keeps it, about 0.4 MB each, so positions go through in blocks of few sizes, the last one filled up with zeros.

Shapes: P positions, I in features, O out features.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCKS = (512, 256, 128, 64)
"""Positions of a product: what it reads and writes should stay in the processor's caches."""
_UNIT = 8
"""What is left is filled up to a multiple of this; fewer positions than this go the usual way."""
_CPUS = Path("/proc/cpuinfo")
_SAID = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
"""What of it says which processor this is; the last three on ARM."""


@functools.cache
def pays() -> bool:
    """Whether MKL is what torch takes on this processor and leaves half of it unused."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in _CPUS.read_text()
    except OSError:
        return False


def processor() -> dict[str, str]:
    """Maker, model and abilities of this processor, as far as the system says."""
    try:
        first = _CPUS.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return {name: said[name] for name in _SAID if name in said}


def product(x_PI: Tensor, W_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b``, (P, O), without a gradient of its own; the usual product where nothing is gained or it cannot be."""
    if not _takes(x_PI, W_OI):
        return functional.linear(x_PI, W_OI, bias_O)
    parts = []
    for size, part_PI in zip(sizes := blocks(len(x_PI)), x_PI.split(sizes), strict=True):
        filled_PI = functional.pad(part_PI, (0, 0, 0, -size % _UNIT)) if size % _UNIT else part_PI
        parts.append(_onednn(filled_PI, W_OI, bias_O)[:size])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def blocks(positions: int) -> list[int]:
    """How many positions go through a product at once, in order."""
    sizes, left = [], positions
    for size in _BLOCKS:
        sizes += [size] * (left // size)
        left %= size
    return [*sizes, left] if left else sizes


def _onednn(x_PI: Tensor, W_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x_PI, W_OI, bias_O, "none", [], "")
    return out


def _takes(x: Tensor, W_OI: Tensor) -> bool:
    full = x.dtype == W_OI.dtype == torch.float32 and x.device.type == W_OI.device.type == "cpu"
    many = x.numel() >= _UNIT * x.shape[-1] and W_OI.numel() > 0
    wanted = bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")
    return full and many and wanted and pays()


class _Linear(torch.autograd.Function):
    """Can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x_PI: Tensor, W_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_PI, W_OI)
        return product(x_PI, W_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, dy_PO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_PI, W_OI = ctx.saved_tensors
        for_x, for_W, for_bias = ctx.needs_input_grad
        return (
            linear(dy_PO, W_OI.T) if for_x else None,
            dy_PO.T @ x_PI if for_W else None,
            dy_PO.sum(0) if for_bias else None,
        )


def linear(x: Tensor, W_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b``, (..., O) of (..., I), with gradients."""
    if not _takes(x, W_OI):
        return functional.linear(x, W_OI, bias_O)
    flat_PI = x.reshape(-1, x.shape[-1])
    learns = any(t is not None and t.requires_grad for t in (x, W_OI, bias_O)) and torch.is_grad_enabled()
    out_PO = (_Linear.apply if learns else product)(flat_PI, W_OI, bias_O)
    return out_PO.view(*x.shape[:-1], -1)


def quicken(model: nn.Module) -> list[nn.Linear]:
    """Let the plain linears of a model take this way where it pays; returns them, for `relax`."""
    layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)] if pays() else []
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]
    return layers


def relax(layers: list[nn.Linear]) -> None:
    """Torch's own forward again."""
    for layer in layers:
        vars(layer).pop("forward", None)


@contextlib.contextmanager
def quick(model: nn.Module) -> Iterator[None]:
    """`quicken` for as long as the block lasts."""
    layers = quicken(model)
    try:
        yield
    finally:
        relax(layers)


def _forward(layer: nn.Linear, input: Tensor) -> Tensor:
    return linear(input, layer.weight, layer.bias)
