"""Passes over rows for methods that edit weights without training, one matrix at a time.

A matrix is a whole weight, or the product of a LoRA pair; both go by the module's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mcit.core.interfaces import Passes, StageContext, TensorStore
from mcit.core.types import Row, WeightUnit


def matrix(unit: WeightUnit) -> str:
    """Name of a unit's matrix, of a LoRA pair and of the whole weight alike."""
    return unit.name.removesuffix(".weight")


def matrices(ctx: StageContext, endings: Sequence[str]) -> Iterator[WeightUnit]:
    """Units that are a matrix, or a weight, whose name has one of the endings, matched at a dot; all for none."""
    for unit in ctx.weights.units():
        whole = unit.kind == "tensor" or set(unit.params) == {"A", "B"}
        if whole and (not endings or ends_with(matrix(unit), endings)):
            yield unit


def ends_with(name: str, endings: Sequence[str]) -> bool:
    """Whether a module's name has one of the endings, matched at a dot."""
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def add_squares(
    ctx: StageContext, rows: Sequence[Row], units: Sequence[WeightUnit], *, size: int, store: TensorStore, kind: str
) -> int:
    """Add the squared gradients of the mean loss of `size` rows each, of effective weights; returns how many there were."""
    count = 0
    for _, gradients in ctx.gradient_pass(rows, rows=size, effective=True):
        for unit in units:
            store.accumulate(kind, matrix(unit), gradients.effective(unit).square())
        count += 1
    return count


def loss_on(ctx: Passes, rows: Sequence[Row]) -> float:
    """Mean loss per answer token."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for batch, out in ctx.forward_pass(rows):
        total += out.nll_N.detach().double().sum().cpu()
        tokens += batch.target_count
    return float(total) / max(1, tokens)
