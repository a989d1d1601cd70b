"""Sums of a step over its micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcit.core.interfaces import StepContext


class StepSums:
    """Adds up scalars on the device, each batch once however many passes go over it."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, ctx: StepContext) -> None:
        """Add a detached scalar, fp64."""
        if not ctx.again:
            self.values[name] = self.values.get(name, 0.0) + value.detach().double()

    def take(self, names: Sequence[str], ctx: StepContext) -> Tensor | None:
        """Sums over all ranks in the order of `names`, cleared here; None where this step added nothing."""
        if not self.values:
            return None
        zero = torch.zeros_like(next(iter(self.values.values())))
        mine = torch.stack([self.values.get(name, zero) for name in names])
        self.values = {}
        return ctx.all_sum(mine)
