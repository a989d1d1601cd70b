"""Masks of frozen entries inside the matrices of a decoder: which units have one, how it is drawn, what it protects.

A method keeps them as tensors "frozen" by parameter name, true where an entry keeps its value: (O,) for rows, else the weight's
shape. O is the number of output rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from mcit.core.errors import StateError, TrainingError
from mcit.core.interfaces import Gradients, StageContext, TensorStore
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


def draw_masks(store: TensorStore, ctx: StageContext, *, selection: str, schedule: str, name: str) -> dict[str, str]:
    """Put the stage's masks in place of the last ones, which they follow by `schedule`; digests of what they protect, by
    parameter name. `name` is the method's."""
    digests = {}
    for unit in decoder_units(ctx.weights.units("tensor")):
        parameter = unit.params["weight"]
        mask = store.get("frozen", parameter)
        if mask is None or schedule == "independent":
            mask = drawn_mask(unit, selection, seed=(ctx.seed, name))
        elif schedule == "complement":
            mask = ~mask
        store.put("frozen", parameter, mask)
        digests[parameter] = _digest(store, unit, ctx, name)
    return digests


def verify_entries(store: TensorStore, digests: Mapping[str, str], ctx: StageContext, *, name: str) -> None:
    """Compare frozen entries with what `draw_masks` returned. Raises TrainingError when one has moved."""
    for unit in ctx.weights.units("tensor"):
        digest = digests.get(unit.params["weight"])
        if digest is not None and digest != _digest(store, unit, ctx, name):
            raise TrainingError(
                f"frozen entries of '{unit.name}' have changed",
                where=f"stage {ctx.stage.name}, {name}",
                fix="another method writes weights in this stage; remove it",
            )


def _digest(store: TensorStore, unit: WeightUnit, ctx: StageContext, name: str) -> str:
    mask = store.get("frozen", unit.params["weight"])
    if mask is None:
        raise StateError("a mask is missing", where=f"{name}, {unit.name}", fix="restart the stage")
    with ctx.weights.gathered(unit) as tensors:
        return entries_digest(tensors["weight"], mask)


def freeze_entries(store: TensorStore, grads: Gradients) -> None:
    """Zero the gradients of frozen entries, and have the engine restore these entries after the step."""
    for unit in grads.units("tensor"):
        mask = store.get("frozen", unit.params["weight"])
        if mask is not None:
            gradient = grads.full(unit)["weight"]
            mask = spread(mask, gradient.shape).to(gradient.device)
            grads.replace(unit, "weight", gradient.masked_fill(mask, 0.0))
            grads.freeze(unit, "weight", mask)
