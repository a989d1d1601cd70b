import contextlib
import math
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import PlanError
from mcit.methods.refresh import Refresh
from tests.fakes.method_plans import plan_with
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import context, output, rows, unit

CALM = {"noise": 0.0, "damping": 0.0}


class Weights:
    """One unit with tensor B away from zero and A at it."""

    def __init__(self):
        self.tensors = {"A": torch.zeros(2), "B": torch.tensor([3.0, 4.0])}

    def units(self, kind=None):
        return [unit()]

    @contextlib.contextmanager
    def edit(self, unit):
        yield self.tensors


class Step:
    """Records passes; every gradient of B is (0, -0.5)."""

    streams = ("task", "replay")

    def __init__(self):
        self.order = []

    def accumulate(self, streams=None, *, loss=None):
        self.order.append((streams, loss is not None))

    def take(self):
        return SimpleNamespace(full=lambda unit: {"A": torch.ones(2), "B": torch.tensor([0.0, -0.5])})


def ctx_at(step=0):
    ctx = context()
    ctx.weights, ctx.step = Weights(), step
    return ctx


def test_unlearning_by_hand_on_the_task_alone_and_then_the_ordinary_pass():
    """(3, 4) and a gradient along (0, -1): 5 * 1e-5 off the second; A is zero and stays; replayed rows are not unlearned."""
    step, ctx = Step(), ctx_at()
    Refresh(Refresh.Config(**CALM)).passes(step, ctx)
    assert step.order == [(["task"], True), (None, False)]
    assert torch.allclose(ctx.weights.tensors["B"] - torch.tensor([3.0, 4.0]), torch.tensor([0.0, -5e-5]), atol=1e-6)
    assert torch.equal(ctx.weights.tensors["A"], torch.zeros(2))


def test_importances_damp_the_step():
    """F = 1000 at the second entry and damping 1e-3: half of the step, here 0.5 of 5 at delta 0.1."""
    method, ctx = Refresh(Refresh.Config(delta=0.1, noise=0.0, damping=1e-3)), ctx_at()
    method.tensors.put("fisher", "m.lora_B", torch.tensor([0.0, 1000.0]))
    method.passes(Step(), ctx)
    assert torch.allclose(ctx.weights.tensors["B"], torch.tensor([3.0, 3.75]))


def test_noise_is_of_stage_step_and_tensor_and_moves_no_other_random_number():
    def moved(step, seed=5):
        ctx = ctx_at(step)
        ctx.stage.seed = seed
        Refresh(Refresh.Config(delta=1.0, noise=1.0, damping=0.0)).passes(Step(), ctx)
        return ctx.weights.tensors["A"].clone()

    before = torch.get_rng_state()
    assert torch.equal(moved(0), moved(0)) and float(moved(0).norm()) > 0
    assert not torch.equal(moved(0), moved(1)) and not torch.equal(moved(0), moved(0, seed=6))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_other_step_and_none_at_all():
    method = Refresh(Refresh.Config(every=2, **CALM))
    for index, passes in ((0, 2), (1, 1), (2, 2)):
        step = Step()
        method.passes(step, ctx_at(index))
        assert len(step.order) == passes
    step = Step()
    Refresh(Refresh.Config(delta=0.0)).passes(step, ctx_at())
    assert step.order == [(None, False)]
    assert [Refresh(Refresh.Config(**s)).step_passes for s in ({}, {"every": 2}, {"delta": 0.0})] == [2, 1.5, 1]


def test_importances_of_a_stage_by_hand():
    """Two rows with answers of probability 1/2 and 1/4 and gradients 2 and 4: (4/2 + 16/4) / 2 = 3, and 1e-5 of the old 100."""
    method, ctx = Refresh(Refresh.Config(rows=2)), context(rows=rows("a", 2))
    method.tensors.put("fisher", "m.lora_A", torch.tensor([100.0]))
    method.tensors.put("fisher", "m.lora_B", torch.tensor([0.0]))

    def gradient_pass(given, *, loss):
        assert len(given) == 2
        for likelihood, gradient in ((0.5, 2.0), (0.25, 4.0)):
            out = output(torch.zeros(2, 2), [0, 1])
            loss(SimpleNamespace(nll_N=torch.tensor([-math.log(likelihood) / 2] * 2), logits_NV=out.logits_NV), None)
            full = {"A": torch.tensor([gradient]), "B": torch.tensor([0.0])}
            yield None, SimpleNamespace(units=lambda: [unit()], full=lambda u, full=full: full)

    ctx.gradient_pass = gradient_pass
    method.on_stage_end(ctx)
    assert method.tensors.get("fisher", "m.lora_A").tolist() == pytest.approx([3.001], rel=1e-5)
    assert method.tensors.get("fisher", "m.lora_B").tolist() == [0.0]
    nothing = Refresh(Refresh.Config(damping=0.0))
    nothing.on_stage_end(ctx)
    assert nothing.tensors.names("fisher") == [] and nothing.state_bytes({"w": (2, 3)}, stages=1) == 0
    assert method.state_bytes({"w": (2, 3)}, stages=1) == 24


def test_importances_by_name_need_names_that_stay():
    """Under merge the next adapter takes the names: F would be of other weights. Without F every carry goes."""
    merge = {"rank": 4, "alpha": 8, "carry": "merge"}
    with pytest.raises(PlanError, match="needs names:kept"):
        plan_with("refresh", adapter=merge)
    plan_with("refresh", changes={"refresh": {"damping": 0.0}}, adapter=merge)


def test_naming_it_alone_is_using_the_shipped_settings():
    assert Refresh.Config() == shipped_config(Refresh)
    assert refused(Refresh, delta=-1, rows=0, every=0) == ["delta", "rows", "every"]
