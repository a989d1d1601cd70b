import math

import pytest
import torch

from mcit.methods.lwf import LwF
from tests.fakes.settings import refused, shipped_config
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


def test_weight_zero_asks_for_no_reference():
    """The passes through the reference are what the method costs."""
    ctx = context(index=2)
    ctx.reference = None
    assert LwF(LwF.Config(weight=0.0)).loss_term(output(STUDENT, [0, 0]), batch(), ctx) is None


def test_it_may_act_from_the_first_stage_on():
    """``from_stage: 1`` keeps what the base answers; the value is that of `test_by_hand`."""
    method = LwF(LwF.Config(weight=3.0, temperature=1.0, from_stage=1))
    term = method.loss_term(output(STUDENT, [0, 0]), batch(), context(index=1, reference=output(TEACHER, [0, 0])))
    assert term.sum.item() == pytest.approx(1.5 * math.log(4 / 3), rel=1e-6)


def test_naming_it_alone_is_using_the_shipped_settings():
    """``{name: lwf}`` and ``{use: lwf}`` in a config are the same run, at the paper's values."""
    assert LwF.Config() == shipped_config(LwF)
    assert refused(LwF, weight=0.5, temperature=0.5) == []
    assert refused(LwF, weight=-0.5, temperature=0, from_stage=0) == ["weight", "temperature", "from_stage"]
