"""Masks of frozen entries inside the matrices of a decoder: which units have one, how it is drawn, what it protects."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from mcit.core.seeds import seed_for
from mcit.core.types import WeightUnit
from mcit.methods.formulas.halves import element_mask, part_name, row_mask, spread


def decoder_units(units: Sequence[WeightUnit]) -> list[WeightUnit]:
    """Units of the decoder blocks: of numbered blocks, those in the longest list (the tower does not train here)."""
    numbered = [u for u in units if u.block.rpartition(".")[2].isdigit()]
    lists = Counter(u.block.rpartition(".")[0] for u in numbered)
    decoder = min(lists, key=lambda c: (-lists[c], c), default="")
    return [u for u in numbered if u.block.rpartition(".")[0] == decoder]


def drawn_mask(unit: WeightUnit, selection: str, *, seed: tuple[int, str]) -> Tensor:
    """True where an entry keeps its value: (O,) for ``row``, one draw for a matrix and its bias; else the unit's shape."""
    name = unit.params["weight"]
    if selection == "row":
        return row_mask(unit.shape[0], seed=seed_for(*seed, part_name(name)))
    return element_mask(unit.shape, seed=seed_for(*seed, name))


def entries_digest(weight: Tensor, mask: Tensor) -> str:
    """SHA-256 of the masked entries of a weight."""
    weight = weight.cpu()
    return hashlib.sha256(weight[spread(mask, weight.shape)].numpy().tobytes()).hexdigest()
