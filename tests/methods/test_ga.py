"""Gradient ascent: the loss, and when the stage ends."""

import json
import math

import pytest
import torch

from mcit.core.types import Counts
from mcit.methods.ga import GA, WINDOW
from tests.fakes.forgetting import STAGES, batch_of, output, step_context, trained
from tests.fakes.settings import refused, shipped_config


def method(**settings):
    return GA(GA.Config(**settings))


def test_minus_the_token_loss():
    """M = 2: -2 with slope -1; beside R = 0.5 the difference is -1.5, at factors 2 and 3 -2.5."""
    loss = torch.tensor(2.0, requires_grad=True)
    for gamma, alpha, value in ((1.0, 1.0, -1.5), (2.0, 3.0, -2.5), (1.0, 0.0, -2.0)):
        given = method(gamma=gamma, alpha=alpha)
        out = output([2.0, 2.0])
        forget = given.loss_term(out, batch_of(1), step_context())
        forget.sum.backward()
        assert out.nll_N.grad.tolist() == [-gamma] * 2 and forget.per == "tokens"
        retain = given.loss_term(output([0.5, 0.5]), batch_of(1, "task"), step_context())
        kept = 0.5 if alpha == 1 else 0.0 if retain is None else retain.sum.item() / 2
        assert (retain is None) == (alpha in (0.0, 1.0))
        assert forget.sum.item() / 2 + kept == pytest.approx(value)
    assert loss.grad is None


def ended(given, forget, retain, *, steps=1, vocabulary=8):
    """Why the stage ends after steps with these losses per token; None if it does not."""
    said = []
    ctx = step_context()
    ctx.all_sum, ctx.end_stage = lambda t: t, said.append
    ctx.counts = Counts({"forget": 2, "task": 4}, {"forget": 1, "task": 1})
    for _ in range(steps):
        given.loss_term(output([forget] * 2, vocabulary=vocabulary), batch_of(1), ctx)
        given.loss_term(output([retain] * 4, vocabulary=vocabulary), batch_of(1, "task"), ctx)
        given.after_step(ctx)
    return said[0] if said else None


def test_the_stage_ends_above_the_ceiling():
    assert ended(method(), math.log(8) - 0.01, 1.0) is None
    assert "above 2.079" in ended(method(), math.log(8) + 0.01, 1.0)
    assert ended(method(ceiling=5.0), 4.9, 1.0) is None and "above 5.000" in ended(method(ceiling=5.0), 5.1, 1.0)
    assert ended(method(ceiling="none"), 99.0, 1.0) is None


def test_the_stage_ends_when_retained_rows_suffer():
    """From 1.0 more than 20 %, over a whole window; near 0 there is room of 0.05."""
    for start, now, ends in ((1.0, 1.19, False), (1.0, 1.21, True), (0.01, 0.05, False), (0.01, 0.07, True)):
        given = method()
        given._start = start
        assert ended(given, 1.0, now, steps=WINDOW - 1) is None
        assert (ended(given, 1.0, now) is not None) == ends
    given = method(retain_rise=None)
    given._start = None
    assert ended(given, 1.0, 9.0, steps=WINDOW) is None


def test_what_an_earlier_pass_of_the_step_saw_counts_once():
    given, ctx = method(), step_context()
    given.loss_term(output([1.0]), batch_of(1), ctx)
    ctx.again = True
    given.loss_term(output([5.0]), batch_of(1), ctx)
    assert given._sums["forget"].item() == 1.0


def test_the_loss_at_the_start_is_over_tokens():
    given, ctx = method(), step_context()
    ctx.data.stage_rows = lambda: batch_of(2).rows
    ctx.forward_pass = lambda rows: iter([(batch_of(1), output([1.0, 2.0])), (batch_of(1), output([6.0, 7.0]))])
    given.on_stage_start(ctx)
    assert given.state_dict() == {"start": 4.0, "recent": []}
    off = method(gamma=0.0)
    off.on_stage_start(ctx)
    off.after_step(ctx)
    assert off.state_dict() == {"start": None, "recent": []}


def test_a_stage_that_ends_early_is_on_record(tmp_path):
    """The random model starts near ln V, so that ascent stops within a few steps; the reason is kept."""
    plan, _ = trained(tmp_path, {"use": "ga", "ceiling": 0.5, "per_step": 4}, stages=STAGES[1:])
    done = json.loads((tmp_path / plan.stages[0].folder / "progress.json").read_text())
    assert done["ended"]["step"] == 1 and done["ended"]["reason"].startswith("ga: the forget loss")


def test_state_and_settings():
    given = method()
    given.load_state_dict({"start": 1.5, "recent": [[1.0, 2.0]]})
    assert given.state_dict() == {"start": 1.5, "recent": [[1.0, 2.0]]}
    assert shipped_config(GA) == GA.Config() and refused(GA, ceiling="high", retain_rise=0.0, per_step=0) != []
