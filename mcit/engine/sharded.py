"""Whole weights and gradients, one unit at a time, where every rank holds a part of each tensor.

Every method that gathers is called by all ranks for the same unit; writing needs no other rank, because all hold the
same whole tensors while they write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit
from mcit.engine import world
from mcit.engine.effective import Traces, effective
from mcit.engine.gradients import SAME_SHAPE
from mcit.engine.shards import MOMENTS


class Gatherer:
    """Whole fp32 tensors from parts; the sum with zeros elsewhere is exact."""

    def __init__(self, shards: Any, shapes: Mapping[str, torch.Size], device: torch.device) -> None:
        self.shards, self.shapes, self.device = shards, shapes, device

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One collective for all tensors in `parts` (this rank's, by parameter name; equal names on all ranks)."""
        sizes = [self.shapes[name].numel() for name in parts]
        buffer = torch.zeros(sum(sizes), device=self.device)
        offset = 0
        for (name, part), size in zip(parts.items(), sizes, strict=True):
            start, stop = self.shards.span(name)
            if stop > start:
                buffer[offset + start : offset + stop] = part.to(self.device)
            offset += size
        world.all_sum(buffer)
        split = buffer.split(sizes)
        return {name: t.view(self.shapes[name]) for name, t in zip(parts, split, strict=True)}

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor."""
        start, stop = self.shards.span(name)
        return whole.detach().to(self.device).reshape(-1)[start:stop]


class ShardWeights:
    """`Weights` over parts."""

    def __init__(self, gatherer: Gatherer, units: Sequence[WeightUnit]) -> None:
        self._gatherer, self._shards, self._units = gatherer, gatherer.shards, tuple(units)

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """Units with something trainable, sorted by name."""
        return [u for u in self._units if (u.kind == kind if kind else u.kind != "block")]

    @contextlib.contextmanager
    def gathered(self, unit: WeightUnit) -> Iterator[dict[str, Tensor]]:
        """Detached fp32 copies by role."""
        whole = self._gatherer.whole({name: self._shards.weight(name) for name in unit.params.values()})
        yield {role: whole[name] for role, name in unit.params.items()}

    @contextlib.contextmanager
    def edit(self, unit: WeightUnit) -> Iterator[dict[str, Tensor]]:
        """Copies that are written back at the end of the block; all ranks must write the same."""
        with self.gathered(unit) as tensors:
            yield tensors
            with torch.no_grad():
                for role, tensor in tensors.items():
                    self._shards.put_weight(unit.params[role], tensor)

    def forget_moments(self, unit: WeightUnit) -> None:
        """Put the moments of the unit's tensors to zero; their step counts go on."""
        for name in unit.params.values():
            if self._shards.has_state(name):
                for key in MOMENTS:
                    self._shards.moment(name, key).zero_()

    def local(self) -> dict[str, Tensor]:
        """This rank's flat part of every trained tensor, detached."""
        return {n: self._shards.weight(n) for u in self._units for n in u.params.values()}


class ShardGradients:
    """`Gradients` over parts; `frozen` collects entries to restore after the step."""

    def __init__(
        self, gatherer: Gatherer, units: Sequence[WeightUnit], touched: set[str], traces: Traces | None = None
    ) -> None:
        """`touched` takes the names of tensors whose gradient was replaced."""
        self._gatherer, self._shards, self._units = gatherer, gatherer.shards, tuple(units)
        self._touched, self._traces = touched, traces
        self.frozen: list[tuple[str, Tensor, Tensor]] = []

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """The same units and order as the weights'."""
        return [u for u in self._units if (u.kind == kind if kind else u.kind != "block")]

    def full(self, unit: WeightUnit) -> dict[str, Tensor]:
        """Copies by role; zeros where nothing flowed."""
        whole = self._gatherer.whole({name: self._shards.gradient(name) for name in unit.params.values()})
        return {role: whole[name] for role, name in unit.params.items()}

    def replace(self, unit: WeightUnit, role: str, gradient: Tensor) -> None:
        """Put a gradient in place. Raises TrainingError for another shape."""
        name = unit.params[role]
        shape = self._gatherer.shapes[name]
        if gradient.shape != shape:
            what = f"gradient of shape {tuple(gradient.shape)} for a tensor of {tuple(shape)}"
            raise TrainingError(what, where=name, fix=SAME_SHAPE)
        self._touched.add(name)
        self._shards.put_gradient(name, self._gatherer.part(name, gradient.float()))

    def scale(self, unit: WeightUnit, factor: float) -> None:
        """Multiply this rank's part."""
        for name in unit.params.values():
            self._shards.put_gradient(name, self._shards.gradient(name) * factor)

    def freeze(self, unit: WeightUnit, role: str, mask: Tensor) -> None:
        """Remember the present values of the masked entries; the engine puts them back after the step."""
        name = unit.params[role]
        part = self._gatherer.part(name, mask)
        self.frozen.append((name, part, self._shards.weight(name).to(part.device)[part]))

    def effective(self, unit: WeightUnit) -> Tensor:
        """Gradient of the effective weight. Raises TrainingError outside a pass that traces."""
        return effective(self, self._traces, unit)

    def restore_frozen(self) -> None:
        """Put the remembered entries back, in the order they were frozen; the same calls on every rank."""
        for name, mask, values in self.frozen:
            weight = self._shards.weight(name).clone()
            weight[mask.to(weight.device)] = values.to(weight.device)
            whole = self._gatherer.whole({name: weight})[name]
            self._shards.put_weight(name, whole)


class HeldShards:
    """`Held` of this rank's parts by parameter name."""

    def __init__(self, gatherer: Gatherer, parts: Mapping[str, Tensor], *, images: bool) -> None:
        """`images`: whether a batch with images took part, for tensors that only they reach."""
        self._gatherer, self.parts, self.images = gatherer, parts, images

    def full(self, unit: WeightUnit) -> dict[str, Tensor]:
        """Copies by role; one collective."""
        whole = self._gatherer.whole({name: self.parts[name] for name in unit.params.values()})
        return {role: whole[name] for role, name in unit.params.items()}
