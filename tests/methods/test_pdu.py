"""PDU: flattening, and a multiplier that follows the budget."""

import dataclasses

import pytest
import torch

from mcit.core.types import Counts
from mcit.methods.pdu import PDU
from tests.fakes.forgetting import batch_of, output, step_context
from tests.fakes.settings import shipped_config


def test_the_margin_is_flattened():
    out = dataclasses.replace(output([1.0, 1.0]), logits_NV=torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    term = PDU(PDU.Config(gamma=2.0)).loss_term(out, batch_of(1), step_context())
    assert term.per == "tokens" and term.sum.item() == 8.0


def test_dual_ascent_by_hand():
    """Budget 1, retained loss 1.5 a token: 1, 1.25, 1.5 at a step of .5; far below the budget it stops at 0."""
    method, ctx = PDU(PDU.Config(budget=1.0, dual_step=0.5, warmup=0)), step_context()
    ctx.all_sum = lambda t: t
    ctx.counts = Counts({"task": 2}, {"task": 1})
    method.on_stage_start(ctx)
    weights = []
    for loss in (1.5, 1.5, -9.0, 1.5):
        term = method.loss_term(output([loss, loss]), batch_of(1, "task"), ctx)
        weights.append(term.sum.item() / (2 * loss))
        method.after_step(ctx)
    assert weights == pytest.approx([1.0, 1.25, 1.5, 0.0]) and ctx.logged["pdu/dual"] == 0.0
    assert method.claims.slots == {"objective:task"}


def test_before_the_warm_up_ends_the_multiplier_stays():
    method, ctx = PDU(PDU.Config(budget=0.0, warmup=2)), step_context(step=1)
    ctx.all_sum = lambda t: t
    method.on_stage_start(ctx)
    method.loss_term(output([5.0]), batch_of(1, "task"), ctx)
    method.after_step(ctx)
    assert method.state_dict()["dual"] == 1.0


def test_the_budget_is_the_loss_at_the_start():
    method, ctx = PDU(PDU.Config()), step_context()
    ctx.data.stage_rows = lambda: batch_of(1).rows
    ctx.forward_pass = lambda rows: iter([(batch_of(1), output([1.0, 2.0])), (batch_of(1), output([6.0, 7.0]))])
    method.on_stage_start(ctx)
    assert method.state_dict() == {"dual": 1.0, "budget": 4.0}


def test_state_and_settings():
    method = PDU(PDU.Config())
    method.load_state_dict({"dual": 2.0, "budget": 0.5})
    assert method.state_dict() == {"dual": 2.0, "budget": 0.5}
    assert shipped_config(PDU) == PDU.Config()
