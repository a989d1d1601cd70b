import math

import pytest
import torch

from mcit.methods.undial import Undial
from tests.fakes.forgetting import batch_of, step_context
from tests.fakes.settings import shipped_config
from tests.fakes.steps import output


def test_the_targets_are_the_lowered_reference():
    """Reference (4/5, 1/5) with ln 4 off the truth is (1/2, 1/2); the model is the reference."""
    same = output(torch.tensor([[4.0, 1.0]]).log(), [0])
    ctx = step_context()
    ctx.reference = lambda batch: same
    method = Undial(Undial.Config(strength=math.log(4)))
    term = method.loss_term(same, batch_of(1), ctx)
    assert term.per == "tokens" and term.sum.item() == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)
    assert method.claims.needs == {"reference:stage_start"}


def test_settings():
    assert shipped_config(Undial) == Undial.Config()
