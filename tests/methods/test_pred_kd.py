import math

import pytest
import torch

from mcit.core.types import Claims
from mcit.methods.formulas.divergence import candidate_bce, distillation_kl
from mcit.methods.pred_kd import PredKD
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import batch, context, output

STUDENT, TEACHER = torch.tensor([[0.0, 0, 0]]), torch.tensor([[2.0, -1, 9]])


def soft(p, q):
    """Binary cross-entropy of a prediction q with target p."""
    return -p * math.log(q) - (1 - p) * math.log(1 - q)


def test_binary_cross_entropy_by_hand():
    """Gold is token 2: targets sigmoid(2), sigmoid(-1), 1, predictions 1/2 each: 3 ln 2 whatever the targets."""
    assert candidate_bce(STUDENT, TEACHER, torch.tensor([2])).item() == pytest.approx(3 * math.log(2))
    value = candidate_bce(torch.tensor([[1.0, 0, 0]]), TEACHER, torch.tensor([2])).item()
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert value == pytest.approx(soft(p, q) + 2 * math.log(2))


def test_candidates_are_the_teachers_likeliest_beside_the_gold_token():
    """One candidate: token 0 (2), not token 1 (-1); the gold token's own 9 takes no place."""
    value = candidate_bce(torch.tensor([[0.0, 50, 0]]), TEACHER, torch.tensor([2]), candidates=1).item()
    assert value == pytest.approx(2 * math.log(2))


def test_nothing_flows_into_the_teacher_and_the_target_is_the_minimum():
    teacher = TEACHER.clone().requires_grad_()
    student = TEACHER.clone().requires_grad_()
    candidate_bce(student, teacher, torch.tensor([2])).sum().backward()
    assert teacher.grad is None and student.grad[0, :2].abs().max() < 1e-6 and student.grad[0, 2] < 0


def term(*, index=2, stream="task", **settings):
    method = PredKD(PredKD.Config(**settings))
    return method.loss_term(output(STUDENT, [2]), batch(stream), context(index=index, reference=output(TEACHER, [2])))


def test_it_takes_the_place_of_the_tasks_loss_from_the_second_stage_on():
    assert term(candidates=0, weight=2).sum.item() == pytest.approx(6 * math.log(2))
    assert term(index=1).sum.item() == pytest.approx(math.log(3)) and term(stream="replay") is None
    assert "objective:task" in PredKD(PredKD.Config()).claims.slots
    assert term(weight=0) is None and PredKD(PredKD.Config(weight=0)).claims == Claims()


def test_the_divergence_stands_beside_the_tasks_loss():
    assert term(form="kl").sum.item() == pytest.approx(distillation_kl(STUDENT, TEACHER, 2.0).item())
    assert term(form="kl", index=1) is None and not PredKD(PredKD.Config(form="kl")).claims.slots


def test_settings():
    assert PredKD.Config() == shipped_config(PredKD)
    assert refused(PredKD, candidates=-1) == ["candidates"]
