"""Gradients of effective weights of adapted matrices, from what goes into each matrix and what flows back out of it.

For ``y = (W + s B A) x`` the gradient of the whole matrix is the sum of ``dy x^T`` over positions, although only A and B are
trained: ``dL/dB = s G A^T`` and ``dL/dA = s B^T G``. Shapes: O out features, I in features, P positions of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit
from mcit.engine import world


class Traces:
    """Inputs and output gradients of every adapted matrix during one forward and backward pass."""

    def __init__(self, model: nn.Module, units: Sequence[WeightUnit]) -> None:
        self._modules = {u.name: model.get_submodule(u.name) for u in units if u.kind == "lora"}
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Collect for the passes in this block."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if (
                output.requires_grad
            ):  # a recomputed output (checkpointing) is no part of the graph: nothing flows into it
                x_PI = args[0].detach()
                output.register_hook(lambda dy: self._kept.setdefault(name, []).append((x_PI, dy.detach())))

        return hook

    def of(self, unit: WeightUnit) -> Tensor:
        """The (O, I) gradient, fp32, summed over ranks; one collective. Zeros where nothing flowed."""
        device = next(self._modules[unit.name].parameters()).device
        total_OI = torch.zeros(unit.shape, device=device)
        for x_PI, dy_PO in self._kept.get(unit.name, []):
            total_OI += dy_PO.reshape(-1, unit.shape[0]).float().T @ x_PI.reshape(-1, unit.shape[1]).float()
        return (
            world.all_sum(total_OI) / world.size()
        )  # engines average over ranks what each rank scaled by their number


def effective(gradients: Any, traces: Traces | None, unit: WeightUnit) -> Tensor:
    """Gradient of a unit's effective weight. Raises TrainingError outside a pass that traces."""
    if unit.kind == "tensor":
        whole: Tensor = gradients.full(unit)["weight"]
        return whole.float()
    if traces is None or unit.kind != "lora":
        raise TrainingError(
            "no gradient of an effective weight is kept here",
            where=unit.name,
            fix="ask for units of kind lora or tensor in gradient_pass(…, effective=True)",
        )
    return traces.of(unit)
