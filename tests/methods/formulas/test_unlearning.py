import torch

from mcit.methods.formulas.unlearning import unlearning_step

RATES = {"delta": 1e-5, "noise_scale": 1e-3, "damping": 1e-3}
THETA, UP = torch.tensor([3.0, 4.0]), torch.tensor([0.0, -0.5])
NONE = torch.zeros(2)


def test_step_by_hand():
    """|theta| 5, |u| 0.5: n = 10 u = (0, -5), times 1e-5; F = 1000 there halves it."""
    assert torch.allclose(unlearning_step(THETA, UP, NONE, None, **RATES), torch.tensor([0.0, -5e-5]), atol=1e-12)
    assert torch.allclose(unlearning_step(THETA, UP, NONE, NONE, **RATES), torch.tensor([0.0, -5e-5]), atol=1e-12)
    damped = unlearning_step(THETA, UP, NONE, torch.tensor([0.0, 1000.0]), **RATES)
    assert torch.allclose(damped, torch.tensor([0.0, -2.5e-5]), atol=1e-12)
    longer = unlearning_step(THETA, 7 * UP, NONE, None, **RATES)
    assert torch.allclose(longer, unlearning_step(THETA, UP, NONE, None, **RATES)), "only the direction counts"


def test_a_zero_tensor_gets_the_noise_alone():
    assert torch.equal(unlearning_step(NONE, UP, NONE, None, **RATES), NONE)
    noise = torch.tensor([1.0, -2.0])
    assert torch.allclose(unlearning_step(NONE, UP, noise, None, **RATES), 1e-8 * noise, rtol=1e-5, atol=0)
    assert torch.allclose(unlearning_step(THETA, NONE, noise, None, **RATES), 1e-8 * noise, rtol=1e-5, atol=0)


def test_bf16_has_no_room_for_it():
    """1 + 1e-5 is 1 in bf16, and more than 1 in fp32."""
    assert torch.ones(1).bfloat16() + 1e-5 == 1 and torch.ones(1) + 1e-5 > 1
