import pytest
import torch

from mcit.core.types import WeightUnit
from mcit.methods.l2 import L2
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import context, unit

A, B = torch.tensor([[1.0, -2, 0.5], [0, 1, 2]]), torch.tensor([[2.0, 1], [-1, 3]])


def anchored(weight, **tensors):
    method = L2(L2.Config(weight=weight))
    for name, value in tensors.items():
        method.tensors.put("anchor", name.replace("__", "."), value)
    return method


def test_lora_penalty_by_hand():
    """|B A|^2 = 78.25; scale 2, weight 3, from a zero start: 3/2 * 4 * 78.25 = 469.5."""
    method = anchored(3.0, m__lora_A=A, m__lora_B=torch.zeros(2, 2))
    assert method.weight_penalty(unit(scale=2.0), {"A": A, "B": B}, context()).item() == pytest.approx(469.5)


def test_moving_a_alone_costs_nothing_while_b_is_zero():
    method = anchored(1.0, m__lora_A=A, m__lora_B=torch.zeros(2, 2))
    assert method.weight_penalty(unit(), {"A": A + 5, "B": torch.zeros(2, 2)}, context()).item() == 0.0


def test_plain_tensor_by_hand():
    """w - w0 = (1, -2): weight 4 gives 4/2 * 5 = 10."""
    method = anchored(4.0, p=torch.tensor([1.0, 1.0]))
    tensor_unit = WeightUnit("p", "tensor", {"weight": "p"}, (2,))
    assert method.weight_penalty(tensor_unit, {"weight": torch.tensor([2.0, -1.0])}, context()).item() == 10.0


def test_the_distance_of_three_numbers_by_hand():
    """(1, 2, -1) from (0.5, 2.5, -1): squares sum to 0.5, half of it at weight 1; 0 where the stage begins."""
    method = anchored(1.0, p=torch.tensor([0.5, 2.5, -1.0]))
    tensor_unit = WeightUnit("p", "tensor", {"weight": "p"}, (3,))
    assert method.weight_penalty(tensor_unit, {"weight": torch.tensor([1.0, 2, -1])}, context()).item() == 0.25
    assert method.weight_penalty(tensor_unit, {"weight": torch.tensor([0.5, 2.5, -1])}, context()).item() == 0.0


def test_no_anchor_or_no_weight_is_nothing():
    assert anchored(1.0).weight_penalty(unit(), {"A": A, "B": B}, context()) is None
    assert anchored(0.0, m__lora_A=A, m__lora_B=B).weight_penalty(unit(), {"A": A, "B": B}, context()) is None


def test_half_a_pair_is_anchored_as_a_plain_tensor():
    """Another method froze A, so B alone trains: |B|^2 = 4 + 1 + 1 + 9 = 15; weight 2 gives 2/2 * 15."""
    half = WeightUnit("m", "lora", {"B": "m.lora_B"}, (), 2.0)
    method = anchored(2.0, m__lora_B=torch.zeros(2, 2))
    assert method.weight_penalty(half, {"B": B}, context()).item() == 15.0


def test_estimate_of_the_anchor_by_hand():
    """3 x 2 and 5 numbers of 4 bytes: 24 + 20, however many stages went before."""
    assert L2(L2.Config()).state_bytes({"a": (3, 2), "b": (5,)}, stages=3) == 44


def test_naming_it_alone_is_using_the_shipped_settings():
    """``{name: l2}`` and ``{use: l2}`` in a config are the same run: 1/2 |w - w0|^2."""
    assert L2.Config() == shipped_config(L2)
    assert refused(L2, weight=-0.1) == ["weight"] and refused(L2, weight=0.5) == []
