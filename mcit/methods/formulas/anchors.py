"""Anchors with importances as EWC keeps them: where trained tensors were, and what it costs to be elsewhere.

In a method's store: "fisher" and "anchor" by unit or parameter name, of single stages "fisher <stage>" and "anchor <stage>",
with the stages' names under "stages". The formulas are in `fisher`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mcit.core.interfaces import TensorStore, Weights
from mcit.core.types import WeightUnit
from mcit.methods.formulas.fisher import anchor_distance, update_distance


def put_anchors(store: TensorStore, kind: str, weights: Weights) -> None:
    """Keep every trained tensor as it is now, by parameter name."""
    for unit in weights.units():
        with weights.gathered(unit) as tensors:
            for role, tensor in tensors.items():
                store.put(kind, unit.params[role], tensor)


def running_terms(
    store: TensorStore, unit: WeightUnit, tensors: Mapping[str, Tensor], *, effective: bool
) -> list[Tensor]:
    """Distances of a unit from the newest anchor, weighted by the running importances; of a pair's product if `effective`."""
    device = next(iter(tensors.values())).device
    anchors = {role: store.require("anchor", name).to(device) for role, name in unit.params.items()}
    if effective:
        whole = store.get("fisher", unit.name)
        if whole is None:
            return []
        pair = tensors["B"], tensors["A"], anchors["B"], anchors["A"]
        return [update_distance(*pair, whole.to(device), unit.scale)]
    own = {role: store.get("fisher", name) for role, name in unit.params.items()}
    return [anchor_distance(tensors[role], anchors[role], f.to(device)) for role, f in own.items() if f is not None]


def separate_terms(store: TensorStore, unit: WeightUnit, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Distances of a unit's tensors from the anchor of each earlier stage, weighted by that stage's importances."""
    terms = []
    for stage in store.names("stages"):
        for role, name in unit.params.items():
            fisher, anchor = (store.get(f"{kind} {stage}", name) for kind in ("fisher", "anchor"))
            if fisher is not None and anchor is not None:
                device = tensors[role].device
                terms.append(anchor_distance(tensors[role], anchor.to(device), fisher.to(device)))
    return terms
