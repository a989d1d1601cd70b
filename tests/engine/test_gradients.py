import pytest
import torch
from torch import nn

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit
from mcit.engine.gradients import LocalGradients, LocalWeights, zero_moments

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
    block = WeightUnit("b", "block", {"m:A": "a", "m:B": "b"}, (2,))
    for holder in (LocalWeights({}, [lora, UNIT, block]), LocalGradients({}, [lora, UNIT, block])):
        assert [u.name for u in holder.units()] == ["m", "w"] and holder.units("lora") == [lora]
        assert holder.units("block") == [block]


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


def test_moments_are_put_to_zero_and_step_counts_stay():
    parameters = named()
    state = {parameters["w"]: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}
    LocalWeights(parameters, [UNIT], state).forget_moments(UNIT)
    found = state[parameters["w"]]
    assert found["step"] == 3 and found["exp_avg"].tolist() == found["exp_avg_sq"].tolist() == [0.0, 0.0]
    LocalWeights(parameters, [UNIT]).forget_moments(UNIT)  # before the first step there are none


def test_moments_of_eight_bits_are_forgotten_by_their_scales():
    """The code of zero is not 0 in a signed 8-bit map: what counts is scale times map."""
    state = {
        "step": 4,
        "state1": torch.tensor([9], dtype=torch.uint8),
        "absmax1": torch.ones(1),
        "qmap1": torch.ones(2),
    }
    zero_moments(state)
    assert state["absmax1"].tolist() == [0.0] and state["state1"].tolist() == [9] and state["qmap1"].tolist() == [1, 1]


def test_every_tensor_is_local_with_one_process():
    parameters = named()
    local = LocalWeights(parameters, [UNIT]).local()
    assert local["w"].tolist() == [1.0, 2.0] and not local["w"].requires_grad
