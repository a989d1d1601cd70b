from typing import ClassVar

import pytest
import torch

from mcit.core.types import WeightUnit
from mcit.methods.o_lora import OLoRA
from tests.fakes.bench import plan_of, run_plan
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import Weights, context, unit

A1 = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
A2 = torch.tensor([[0.5, -0.5, 2], [0, 0, 1]])
B2 = torch.tensor([[3.0, 0], [0, 4]])


def after_stage_one(**settings):
    method = OLoRA(OLoRA.Config(**settings))
    method.on_stage_end(context(index=1, weights=Weights(A=A1, B=torch.zeros(2, 2))))
    return method


@pytest.mark.parametrize(("weight", "value"), [(0.5, 0.5), (0.05, 0.05)])
def test_overlap_by_hand(weight, value):
    """A1 A2^T = [[.5, 0], [-.5, 0]]: entries sum to 1 in absolute value, times lambda 1."""
    penalty = after_stage_one(weight=weight).weight_penalty(unit(), {"A": A2, "B": B2}, context())
    assert penalty.item() == pytest.approx(value)


def test_the_first_stage_and_weight_zero_have_none():
    assert OLoRA(OLoRA.Config()).weight_penalty(unit(), {"A": A2, "B": B2}, context()) is None
    assert after_stage_one(weight=0).weight_penalty(unit(), {"A": A2, "B": B2}, context()) is None


def test_norms_are_not_squared():
    """|A2| = sqrt(.25 + .25 + 4 + 1) = 2.345208, |B2| = 5: a tenth of both."""
    penalty = after_stage_one(weight=0, norm_weight=0.1).weight_penalty(unit(), {"A": A2, "B": B2}, context())
    assert penalty.item() == pytest.approx(0.7345208)


def test_earlier_factors_get_no_gradient_and_b_none_from_the_overlap():
    """d/dA2 = weight * sign(A1 A2^T)^T A1 = 0.5 * [[1, -1, 0], [0, 0, 0]]."""
    method = after_stage_one()
    a, b = A2.clone().requires_grad_(), B2.clone().requires_grad_()
    method.weight_penalty(unit(), {"A": a, "B": b}, context()).backward()
    assert a.grad.tolist() == [[0.5, -0.5, 0], [0, 0, 0]] and b.grad is None
    assert not method.tensors.get("subspace", "m").requires_grad


def test_all_earlier_stages_count():
    """After two stages rows of both: |A1 A2^T| + |A2 A2^T| = 1 + (4.5 + 2 + 2 + 1) = 10.5, times .5."""
    method = after_stage_one()
    method.on_stage_end(context(index=2, weights=Weights(A=A2, B=B2)))
    assert method.tensors.get("subspace", "m").shape == (4, 3)
    assert method.weight_penalty(unit(), {"A": A2, "B": B2}, context()).item() == pytest.approx(5.25)


def test_half_a_pair_without_a_has_no_overlap():
    half = WeightUnit("m", "lora", {"B": "m.lora_B"}, (), 2.0)
    assert after_stage_one().weight_penalty(half, {"B": B2}, context()) is None


class Looking(OLoRA):
    """Keeps what the engine's model says of the first stage's rows, as that stage begins and ends and as the next begins."""

    name = "looking"
    rows: ClassVar = []
    seen: ClassVar = {}

    def _look(self, ctx, moment):
        Looking.rows = Looking.rows or list(ctx.data.stage_rows())[:12]
        outs = [out for _, out in ctx.forward_pass(Looking.rows)]
        b = [part for name, part in ctx.weights.local().items() if ".lora_B." in name]
        zero = bool(b) and not any(part.any() for part in b)
        Looking.seen[moment] = torch.cat([o.logits_NV for o in outs]), torch.cat([o.nll_N for o in outs]), zero

    def on_stage_start(self, ctx):
        super().on_stage_start(ctx)
        self._look(ctx, f"start {ctx.stage.index}")

    def on_stage_end(self, ctx):
        super().on_stage_end(ctx)
        self._look(ctx, f"end {ctx.stage.index}")


@pytest.mark.parametrize(
    "settings", [{"weight": 0.5, "norm_weight": 0.1}, {"weight": 0.0}], ids=["overlap", "weight 0"]
)
def test_a_stage_begins_with_the_outputs_and_losses_of_the_stage_before_exactly(settings, tmp_path, monkeypatch):
    """The new B is 0 and the earlier adapter goes on acting: bit for bit the same logits and token losses, in the engine that
    trains; with the projector, which the stage before trained too. Two steps later they differ."""
    monkeypatch.setattr(Looking, "rows", [])
    monkeypatch.setattr(Looking, "seen", {})
    adapter = {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "stack"}
    methods = [{"name": f"{__name__}:Looking", **settings}]
    run_plan(plan_of(defaults={"adapter": adapter, "methods": methods, "max_steps": 2}), tmp_path)
    assert sorted(Looking.seen) == ["end 1", "end 2", "start 1", "start 2"]
    (logits, losses, _), (again, same, zero) = Looking.seen["end 1"], Looking.seen["start 2"]
    assert zero and torch.equal(logits, again) and torch.equal(losses, same) and logits.isfinite().all()
    for moment in ("start 1", "end 2"):
        assert not torch.equal(Looking.seen[moment][0], again)


def test_estimate_and_settings():
    shapes = {"m.lora_A.default.weight": (2, 3), "m.lora_B.default.weight": (5, 2), "p": (7,)}
    assert OLoRA(OLoRA.Config()).state_bytes(shapes, stages=3) == 72
    assert OLoRA.Config() == shipped_config(OLoRA)
    assert refused(OLoRA, weight=-1) == ["weight"]
