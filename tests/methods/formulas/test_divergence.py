import math

import pytest
import torch

from mcit.methods.formulas.divergence import distillation_kl, top_kl, top_log_probs


def test_by_hand():
    """Teacher (1/2, 1/2), student (3/4, 1/4): KL = 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)."""
    teacher, student = torch.zeros(1, 2), torch.log(torch.tensor([[0.75, 0.25]]))
    assert distillation_kl(student, teacher).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert distillation_kl(teacher, teacher).item() == 0.0


def test_softened_outputs_by_hand():
    """Teacher (2, 0), student (0, 0), T = 2: (0.731059, 0.268941) against halves; cross-entropy 0.693147, KL 0.110944, which
    T^2 makes 0.443776. Cross-entropy and KL differ by the teacher's entropy alone."""
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
    soft = torch.softmax(teacher / 2, -1)
    assert soft.tolist()[0] == pytest.approx([0.731059, 0.268941], abs=1e-6)
    crossed = -(soft * torch.log_softmax(student / 2, -1)).sum().item()
    divergence = distillation_kl(student, teacher, 2.0).item() / 4
    assert crossed == pytest.approx(0.693147, abs=1e-6) and divergence == pytest.approx(0.110944, abs=1e-6)
    assert crossed - divergence == pytest.approx(-(soft * soft.log()).sum().item(), abs=1e-6)
    powers = torch.softmax(teacher, -1) ** 0.5
    assert torch.allclose(powers / powers.sum(), soft), "mammoth's roots of probabilities are the same"


def test_temperature_keeps_the_gradient_scale():
    """For small logits T^2 KL(z/T) does not depend on T to leading order; without T^2 it would fall 100-fold."""
    student, teacher = torch.tensor([[0.02, -0.01, 0.0]]), torch.tensor([[0.0, 0.01, -0.02]])
    one, ten = distillation_kl(student, teacher, 1.0).item(), distillation_kl(student, teacher, 10.0).item()
    assert ten == pytest.approx(one, rel=0.05)


def test_bf16_logits_are_compared_in_fp32():
    a, b = torch.randn(4, 50).bfloat16(), torch.randn(4, 50).bfloat16()
    assert distillation_kl(a, b).dtype == torch.float32


def test_kl_baseline_of_gere_has_no_factor_of_the_temperature():
    """Oracle 10 of the GeRe card: reference [0,0], current [2,0], T = 2 gives ln cosh(1/2) = 0.1201145; T^2 would make it
    0.480458."""
    ids, log_p = top_log_probs(torch.zeros(1, 2), 64, 2.0)
    assert ids.shape == (1, 2) and ids.dtype == torch.int32
    student = torch.tensor([[2.0, 0.0]])
    assert top_kl(student, ids, log_p, 2.0).item() == pytest.approx(math.log(math.cosh(0.5)), rel=1e-5)
    assert distillation_kl(student, torch.zeros(1, 2), 2.0).item() == pytest.approx(0.480458, abs=5e-7)


def test_the_temperature_flattens_what_is_kept():
    """Logits (2 ln 3, 0) at T = 2 are (ln 3, 0): probabilities 3/4 and 1/4."""
    ids, log_p = top_log_probs(torch.tensor([[2 * math.log(3), 0.0]]), 2, 2.0)
    assert ids.tolist() == [[0, 1]]
    assert log_p.tolist()[0] == pytest.approx([math.log(3 / 4), math.log(1 / 4)], rel=1e-6)


def test_kept_tokens_bound_the_divergence_from_below():
    """The rest of the vocabulary counts as one token; with all tokens kept it is the whole divergence."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(20, 50, generator=generator) for _ in range(2))
    whole = distillation_kl(student, teacher)
    found = [top_kl(student, *top_log_probs(teacher, k, 1.0), 1.0) for k in (1, 5, 25, 49, 50)]
    for less, more in zip(found, found[1:], strict=False):
        assert (less <= more + 1e-5).all() and (less >= 0).all()
    assert torch.allclose(found[-1], whole, rtol=1e-4, atol=1e-5) and (found[0] < whole - 1e-3).any()


def test_kept_tokens_by_hand():
    """Teacher (1/2, 1/4, 1/4), student uniform, one kept: 1/2 ln(3/2) + 1/2 ln(3/4); equal to itself it is 0."""
    teacher = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    ids, log_p = top_log_probs(teacher, 1, 1.0)
    assert ids.tolist() == [[0]]
    expected = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert top_kl(torch.zeros(1, 3), ids, log_p, 1.0).item() == pytest.approx(expected, rel=1e-5)
    assert top_kl(teacher, ids, log_p, 1.0).item() == pytest.approx(0.0, abs=1e-7)
