import math

import pytest
import torch

from mcit.methods.formulas.divergence import distillation_kl


def test_by_hand():
    """Teacher (1/2, 1/2), student (3/4, 1/4): KL = 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)."""
    teacher, student = torch.zeros(1, 2), torch.log(torch.tensor([[0.75, 0.25]]))
    assert distillation_kl(student, teacher).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert distillation_kl(teacher, teacher).item() == 0.0


def test_temperature_keeps_the_gradient_scale():
    """For small logits T^2 KL(z/T) does not depend on T to leading order; without T^2 it would fall 100-fold."""
    student, teacher = torch.tensor([[0.02, -0.01, 0.0]]), torch.tensor([[0.0, 0.01, -0.02]])
    one, ten = distillation_kl(student, teacher, 1.0).item(), distillation_kl(student, teacher, 10.0).item()
    assert ten == pytest.approx(one, rel=0.05)


def test_bf16_logits_are_compared_in_fp32():
    a, b = torch.randn(4, 50).bfloat16(), torch.randn(4, 50).bfloat16()
    assert distillation_kl(a, b).dtype == torch.float32
