"""Whole weights and gradients, one unit at a time, where every rank holds all of them (one process or DDP)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit


class LocalWeights:
    """`Weights` over plain parameters."""

    def __init__(self, named: Mapping[str, nn.Parameter], units: Sequence[WeightUnit]) -> None:
        self._named = named
        self._units = tuple(units)

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """Units with something trainable, sorted by name."""
        return [u for u in self._units if kind in (None, u.kind)]

    @contextlib.contextmanager
    def gathered(self, unit: WeightUnit) -> Iterator[dict[str, Tensor]]:
        """Detached fp32 copies by role."""
        yield {role: self._named[name].detach().float().clone() for role, name in unit.params.items()}

    @contextlib.contextmanager
    def edit(self, unit: WeightUnit) -> Iterator[dict[str, Tensor]]:
        """Copies that are written back at the end of the block."""
        with self.gathered(unit) as tensors:
            yield tensors
            with torch.no_grad():
                for role, tensor in tensors.items():
                    self._named[unit.params[role]].copy_(tensor)


class LocalGradients:
    """`Gradients` over ``param.grad``; `frozen` collects entries to restore after the step."""

    def __init__(self, named: Mapping[str, nn.Parameter], units: Sequence[WeightUnit]) -> None:
        self._named = named
        self._units = tuple(units)
        self.frozen: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """The same units and order as the weights'."""
        return [u for u in self._units if kind in (None, u.kind)]

    def full(self, unit: WeightUnit) -> dict[str, Tensor]:
        """Copies by role; zeros where nothing flowed."""
        out = {}
        for role, name in unit.params.items():
            parameter = self._named[name]
            out[role] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
        return out

    def replace(self, unit: WeightUnit, role: str, gradient: Tensor) -> None:
        """Put a gradient in place. Raises TrainingError for another shape."""
        parameter = self._named[unit.params[role]]
        if gradient.shape != parameter.shape:
            raise TrainingError(
                f"gradient of shape {tuple(gradient.shape)} for a tensor of {tuple(parameter.shape)}",
                where=unit.params[role],
            )
        parameter.grad = gradient.detach().to(parameter.device, parameter.dtype).clone()

    def scale(self, unit: WeightUnit, factor: float) -> None:
        """Multiply in place."""
        for name in unit.params.values():
            grad = self._named[name].grad
            if grad is not None:
                grad.mul_(factor)

    def freeze(self, unit: WeightUnit, role: str, mask: Tensor) -> None:
        """Remember the present values of the masked entries; the engine puts them back after the step."""
        parameter = self._named[unit.params[role]]
        mask = mask.to(parameter.device)
        self.frozen.append((parameter, mask, parameter.detach()[mask].clone()))
