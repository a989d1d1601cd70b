"""Whole weights and gradients, one unit at a time, where every rank holds all of them (one process or DDP)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit
from mcit.engine.effective import Traces, effective

SAME_SHAPE = "replace a gradient by one of the tensor's own shape"
"""What a method has to do that handed in another shape."""


def zero_moments(state: Mapping[str, Any]) -> None:
    """Put the moments of an optimiser's state for one tensor to zero in place; 8-bit ones by their block scales."""
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor) and k != "step" and not k.startswith("qmap")}
    scales = {k: v for k, v in tensors.items() if k.startswith("absmax")}
    for value in (scales or tensors).values():
        value.zero_()


class LocalWeights:
    """`Weights` over plain parameters."""

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        units: Sequence[WeightUnit],
        moments: MutableMapping[Any, Any] | None = None,
    ) -> None:
        """`moments` is the optimiser's state by parameter."""
        self._named = named
        self._units = tuple(units)
        self._moments = {} if moments is None else moments

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """Units with something trainable, sorted by name."""
        return [u for u in self._units if (u.kind == kind if kind else u.kind != "block")]

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

    def forget_moments(self, unit: WeightUnit) -> None:
        """Put the moments of the unit's tensors to zero; their step counts go on."""
        for name in unit.params.values():
            zero_moments(self._moments.get(self._named[name], {}))

    def local(self) -> dict[str, Tensor]:
        """This rank's part of every trained tensor, detached: all of it."""
        return {name: parameter.detach() for name, parameter in self._named.items()}


class LocalGradients:
    """`Gradients` over ``param.grad``; `frozen` collects entries to restore after the step."""

    def __init__(
        self, named: Mapping[str, nn.Parameter], units: Sequence[WeightUnit], traces: Traces | None = None
    ) -> None:
        self._named = named
        self._units = tuple(units)
        self._traces = traces
        self.frozen: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """The same units and order as the weights'."""
        return [u for u in self._units if (u.kind == kind if kind else u.kind != "block")]

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
                fix=SAME_SHAPE,
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

    def effective(self, unit: WeightUnit) -> Tensor:
        """Gradient of the effective weight. Raises TrainingError outside a pass that traces."""
        return effective(self, self._traces, unit)


class HeldGradients:
    """`Held` of whole gradients by parameter name; None where nothing flowed."""

    def __init__(self, parts: Mapping[str, Tensor | None], named: Mapping[str, nn.Parameter]) -> None:
        self.parts, self._named = parts, named

    def full(self, unit: WeightUnit) -> dict[str, Tensor]:
        """Copies by role; zeros where nothing flowed."""
        out = {}
        for role, name in unit.params.items():
            part = self.parts[name]
            out[role] = torch.zeros_like(self._named[name]).detach() if part is None else part.detach().clone()
        return out


def held_dot(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None], device: torch.device) -> Tensor:
    """Sum of products over all tensors that both have, fp64, on `device`."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for name, part in a.items():
        other = b[name]
        if part is not None and other is not None:
            total += torch.dot(part.detach().reshape(-1).double(), other.detach().reshape(-1).double()).to(device)
    return total
