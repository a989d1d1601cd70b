import pytest
import torch
from torch import nn

from mcit.core.types import WeightUnit
from mcit.engine.gradients import LocalWeights
from mcit.engine.penalty import stream_penalties

UNITS = [WeightUnit(n, "tensor", {"weight": n}, (2,)) for n in "ab"]


def test_values_are_summed_over_units_by_method_and_gradients_over_methods():
    """a = (1, 2), b = (3, 4). sq = sum of squares: 30; lin = 10 times the sum of a alone: 30. Gradient a: 2a + 10, b: 2b."""
    weights = LocalWeights(
        {"a": nn.Parameter(torch.tensor([1.0, 2])), "b": nn.Parameter(torch.tensor([3.0, 4]))}, UNITS
    )
    seen, grads = [], {}

    def penalty(unit, tensors):
        seen.append(unit.name)
        values = {"sq": (tensors["weight"] ** 2).sum()}
        return {**values, "lin": 10 * tensors["weight"].sum()} if unit.name == "a" else values

    with torch.no_grad():
        totals = stream_penalties(weights, penalty, grads.__setitem__)
    assert seen == ["a", "b"]
    assert {k: v.item() for k, v in totals.items()} == {"sq": 30.0, "lin": 30.0}
    assert grads["a"].tolist() == [12.0, 14.0] and grads["b"].tolist() == [6.0, 8.0]
    assert not totals["sq"].requires_grad


def test_no_penalty_and_constant_penalty_touch_nothing():
    weights = LocalWeights({n: nn.Parameter(torch.ones(2)) for n in "ab"}, UNITS)
    grads = {}
    assert stream_penalties(weights, lambda unit, tensors: {}, grads.__setitem__) == {}
    totals = stream_penalties(weights, lambda unit, tensors: {"c": torch.tensor(2.0)}, grads.__setitem__)
    assert totals["c"].item() == 4.0 and grads == {}


def test_blocks_are_asked_for_only_by_those_who_name_them():
    """|(a, b)| of a = (1, 2), b = (3, 4) as one block: sqrt(30), gradient theta / sqrt(30); after the tensors themselves."""
    block = WeightUnit("layer", "block", {"x": "a", "y": "b"}, (4,))
    named = {"a": nn.Parameter(torch.tensor([1.0, 2])), "b": nn.Parameter(torch.tensor([3.0, 4]))}
    weights, seen, grads = LocalWeights(named, [*UNITS, block]), [], {}

    def penalty(unit, tensors):
        seen.append(unit.name)
        return {"norm": torch.cat(list(tensors.values())).norm()} if unit.kind == "block" else {}

    assert stream_penalties(weights, penalty, grads.__setitem__) == {} and seen == ["a", "b"]
    totals = stream_penalties(weights, penalty, grads.__setitem__, kinds=frozenset({"block"}))
    assert seen == ["a", "b", "layer"] and totals["norm"].item() == pytest.approx(30**0.5)
    assert grads["a"].tolist() + grads["b"].tolist() == pytest.approx([v / 30**0.5 for v in (1, 2, 3, 4)])
    stream_penalties(weights, penalty, grads.__setitem__, kinds=frozenset({"block", "tensor"}))
    assert seen[3:] == ["a", "b", "layer"]
    assert stream_penalties(weights, penalty, grads.__setitem__, kinds=frozenset()) == {} and len(seen) == 6
