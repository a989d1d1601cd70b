import pytest
import torch
from torch import nn

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit
from mcit.engine.gradients import LocalGradients, LocalWeights

UNIT = WeightUnit("w", "tensor", {"weight": "w"}, (2,))


def named(dtype=torch.float32):
    return {"w": nn.Parameter(torch.tensor([1.0, 2.0], dtype=dtype))}


def test_gathered_is_a_detached_fp32_copy_and_edit_writes_back():
    parameters = named(torch.bfloat16)
    weights = LocalWeights(parameters, [UNIT])
    with weights.gathered(UNIT) as tensors:
        assert tensors["weight"].dtype == torch.float32 and not tensors["weight"].requires_grad
        tensors["weight"].zero_()
    assert parameters["w"].tolist() == [1.0, 2.0]
    with weights.edit(UNIT) as tensors:
        tensors["weight"].mul_(3)
    assert parameters["w"].tolist() == [3.0, 6.0] and parameters["w"].requires_grad


def test_units_by_kind():
    lora = WeightUnit("m", "lora", {"A": "a", "B": "b"}, (1, 1))
    weights = LocalWeights({}, [lora, UNIT])
    assert [u.name for u in weights.units()] == ["m", "w"] and weights.units("lora") == [lora]


def test_gradients_are_copies_and_zeros_where_nothing_flowed():
    parameters = named()
    grads = LocalGradients(parameters, [UNIT])
    assert grads.full(UNIT)["weight"].tolist() == [0.0, 0.0]
    parameters["w"].grad = torch.tensor([1.0, -1.0])
    grads.full(UNIT)["weight"].zero_()
    grads.scale(UNIT, 2.0)
    assert parameters["w"].grad.tolist() == [2.0, -2.0]
    grads.replace(UNIT, "weight", torch.tensor([5.0, 6.0]))
    assert grads.full(UNIT)["weight"].tolist() == [5.0, 6.0]
    with pytest.raises(TrainingError, match="shape"):
        grads.replace(UNIT, "weight", torch.zeros(3))
