"""Anchors in a store, by hand."""

import torch

from mcit.core.tensorstore import HostTensors
from mcit.core.types import WeightUnit
from mcit.methods.formulas.anchors import put_anchors, running_terms, separate_terms
from tests.fakes.steps import Weights

UNIT = WeightUnit("m", "lora", {"A": "m.A", "B": "m.B"}, (1, 1), 2.0)


class Pair(Weights):
    """One pair."""

    def units(self, kind=None):
        return [UNIT]


def test_a_pair_is_anchored_by_its_product_or_by_its_parts():
    """Anchor A 1, B 2; now A 2, B 3: the product moved by 2 (6 - 2) = 8, the parts by 1 each."""
    store = HostTensors()
    put_anchors(store, "anchor", Pair(A=torch.tensor([[1.0]]), B=torch.tensor([[2.0]])))
    now = {"A": torch.tensor([[2.0]]), "B": torch.tensor([[3.0]])}
    assert running_terms(store, UNIT, now, effective=True) == running_terms(store, UNIT, now, effective=False) == []
    for name, importance in (("m", 0.5), ("m.A", 3.0), ("m.B", 7.0)):
        store.put("fisher", name, torch.tensor([[importance]]))
    assert [float(t) for t in running_terms(store, UNIT, now, effective=True)] == [0.5 * 64]
    assert [float(t) for t in running_terms(store, UNIT, now, effective=False)] == [3.0, 7.0]


def test_stages_have_anchors_of_their_own():
    """Stage a at 0 with 1, stage b at 1 with 2: from 3 they are 9 and 8; a stage without importances says nothing."""
    store, unit = HostTensors(), WeightUnit("p", "tensor", {"weight": "p"}, (1,))
    for stage, anchor, importance in (("a", 0.0, 1.0), ("b", 1.0, 2.0), ("c", 5.0, None)):
        store.put("stages", stage, torch.zeros(()))
        store.put(f"anchor {stage}", "p", torch.tensor([anchor]))
        if importance is not None:
            store.put(f"fisher {stage}", "p", torch.tensor([importance]))
    assert [float(t) for t in separate_terms(store, unit, {"weight": torch.tensor([3.0])})] == [9.0, 8.0]
