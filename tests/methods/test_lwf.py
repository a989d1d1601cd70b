import math

import pytest
import torch

from mcit.methods.lwf import LwF
from tests.fakes.steps import batch, context, output

TEACHER, STUDENT = torch.zeros(2, 2), torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


def test_by_hand():
    """Token 1: KL((1/2,1/2) || (3/4,1/4)) = ln(4/3)/2; token 2 agrees. Weight 3, temperature 1: 3 ln(4/3)/2 over tokens."""
    method = LwF(LwF.Config(weight=3.0, temperature=1.0))
    term = method.loss_term(output(STUDENT, [0, 0]), batch(), context(reference=output(TEACHER, [0, 0])))
    assert term.per == "tokens" and term.sum.item() == pytest.approx(1.5 * math.log(4 / 3), rel=1e-6)


def test_acts_on_the_task_stream_from_the_second_stage_on():
    method = LwF(LwF.Config())
    reference = output(TEACHER, [0, 0])
    assert method.loss_term(output(STUDENT, [0, 0]), batch(), context(index=1, reference=reference)) is None
    assert method.loss_term(output(STUDENT, [0, 0]), batch("replay"), context(reference=reference)) is None
    assert method.loss_term(output(STUDENT, [0, 0]), batch(), context(index=2, reference=reference)) is not None
