"""What an engine really holds, in bytes, to check estimates against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


def measured_bytes(engine: Any) -> dict[str, int]:
    """Bytes of this process's tensors: ``frozen``, ``trained``, ``gradients``, ``optimizer``.

    `engine` is an engine of this package with its `model`, between backward and step for gradients and after a step for
    moments; its DeepSpeed or torch optimiser is found on it. Tensors that share storage count once.
    """
    model: nn.Module = engine.model
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    optimizer, zero = optimizers(engine)
    states = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    masters = list(
        getattr(zero, "single_partition_of_fp32_groups", None) or getattr(zero, "fp32_partitioned_groups_flat", [])
    )
    averaged = getattr(zero, "averaged_gradients", None) or {}
    gradients = [
        *(p.grad for p in trained if p.grad is not None),
        *(m.grad for m in masters if m.grad is not None),
        *(g for group in averaged.values() for g in group or []),
        getattr(zero, "grad_partitions_flat_buffer", None),
    ]
    live = {_key(t) for p in trained for t in parts(p)}
    return {
        "frozen": _bytes(t for p in frozen for t in (*parts(p), *quantised(p))),
        "trained": _bytes(t for p in trained for t in parts(p)),
        "gradients": _bytes(g for g in gradients if isinstance(g, Tensor)),
        "optimizer": _bytes([*states, *(m for m in masters if _key(m) not in live)]),
    }


def optimizers(engine: Any) -> tuple[Any, Any]:
    """The torch optimiser that holds moments, and DeepSpeed's wrapper around it (None on plain engines)."""
    for value in vars(engine).values():
        inner: Any = getattr(value, "optimizer", None)
        if hasattr(inner, "bit16_groups") or hasattr(inner, "fp16_groups"):
            return inner.optimizer, inner
    return engine._optimizer, None


def parts(parameter: Any) -> list[Tensor]:
    """The tensor and, under ZeRO-3, the partition that stands for it."""
    return [parameter.data, *([parameter.ds_tensor.data] if hasattr(parameter, "ds_tensor") else [])]


def quantised(parameter: Any) -> Iterator[Tensor]:
    """Scales and code tables of a bitsandbytes parameter."""
    stack = [getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            yield item
        elif item is not None:
            stack += [getattr(item, name, None) for name in ("absmax", "code", "offset", "state2")]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({_key(t): t.untyped_storage().nbytes() for t in tensors}.values())


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
