"""Floating-point operations that are done, and how many a second the machine does at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mcit.engine.linears import product
from mcit.engine.segments import varlen_attn

_SIZE = {"cuda": 8192}
_SIZE_CPU = 1536


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape))


def _linear(x: torch.Tensor, W_OI: torch.Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * x.numel() * len(W_OI)


def _unlike(q_PHE: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor) -> int:
    """Two products of attention over sequences of unlike length."""
    return int(4 * q_PHE.shape[1] * q_PHE.shape[2] * (query_ends.diff().long() * key_ends.diff().long()).sum())


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    *args: Any,
    **kw: Any,
) -> int:
    return _unlike(q, query_ends, key_ends)


def _varlen_backward(grad: torch.Tensor, q: torch.Tensor, *args: Any, **kw: Any) -> int:
    """Five products, as torch counts attention's backward pass; behind q come k, v, the output, its norms and the ends."""
    return _unlike(q, args[4], args[5]) * 5 // 2


_COUNTS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # torch leaves out what follows
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    **(
        {torch.ops.torch_attn._varlen_attn: _varlen, torch.ops.torch_attn._varlen_attn_backward: _varlen_backward}
        if varlen_attn is not None
        else {}
    ),
    **({torch.ops.mkldnn._linear_pointwise: _linear} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}),
}


class FlopCount(TorchDispatchMode):
    """Counts what matrix products, convolutions and attention take inside its block, forward and backward.

    Two for each multiplication with its addition; attention as if nothing was masked. Values are those without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation as it is and count it."""
        out = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=out))
        return out


def matmul_rate(device: torch.device, dtype: torch.dtype, *, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of a product of two square matrices (1536 rows on a CPU, 8192 on a GPU): the best of some after a first.

    On a CPU of torch's own product and of that of `mcit.engine.linears`.
    """
    size = size or _SIZE.get(device.type, _SIZE_CPU)
    a_NN = torch.full((size, size), 0.5, device=device, dtype=dtype)  # draws no random number
    seconds = []
    for multiply in (torch.mm, product) if device.type == "cpu" else (torch.mm,):
        for turn in range(repeats + 1):
            _wait(device)
            start = time.perf_counter()
            multiply(a_NN, a_NN)
            _wait(device)
            if turn:
                seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
