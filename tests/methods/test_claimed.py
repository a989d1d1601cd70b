import contextlib
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import PlanError
from mcit.core.types import Claims
from mcit.methods.claimed import require
from mcit.methods.compose import MethodSet
from tests.fakes.steps import context, unit
from tests.methods.test_compose import make


class Weights:
    """One unit; what is edited and forgotten."""

    def __init__(self):
        self.tensor, self.forgotten = torch.zeros(2), []

    def units(self, kind=None):
        return [unit()]

    @contextlib.contextmanager
    def edit(self, unit):
        yield {"A": self.tensor}

    def forget_moments(self, unit):
        self.forgotten.append(unit.name)


def edits(self, ctx):
    (one,) = ctx.weights.units()
    with ctx.weights.edit(one) as tensors:
        tensors["A"] += 1
    ctx.weights.forget_moments(one)


@pytest.mark.parametrize("hook", ["on_stage_start", "after_step", "on_stage_end"])
def test_weights_are_written_by_those_who_hold_a_slot(hook):
    """Editing unclaimed worked, and two writers did not know of each other."""
    for slot, allowed in ((None, False), ("trainable-mask", False), ("weights:edit", True), ("weights:prox", True)):
        ctx = context()
        ctx.weights = Weights()
        method = make("m", Claims(slots=frozenset({slot} if slot else ())), **{hook: edits})
        call = getattr(MethodSet([method]), hook)
        if allowed:
            call(ctx)
            assert ctx.weights.tensor.tolist() == [1, 1] and ctx.weights.forgotten == ["m"]
        else:
            with pytest.raises(PlanError, match="changes weights without claiming it") as error:
                call(ctx)
            assert error.value.where == "m" and "weights:edit" in error.value.fix and ctx.weights.tensor.sum() == 0


def test_moments_are_written_too():
    def forgets(self, ctx):
        ctx.weights.forget_moments(unit())

    ctx = context()
    ctx.weights = Weights()
    with pytest.raises(PlanError, match="moments"):
        MethodSet([make("m", after_step=forgets)]).after_step(ctx)
    require(SimpleNamespace(name="m", claims=Claims(slots=frozenset({"weights:prox"}))), "x")


def test_everything_else_is_the_context_itself():
    ctx, seen = context(), []
    method = make("m", after_step=lambda self, c: seen.append((c.step, c.log)))
    MethodSet([method]).after_step(ctx)
    assert seen == [(0, ctx.log)]


def test_fine_tuning_needs_the_writers_slot():
    def tunes(self, ctx):
        ctx.fine_tune("task", names=["a"], steps=2, lr=0.1)

    ctx, called = context(), []
    ctx.fine_tune = lambda *args, **settings: called.append((args, settings)) or [1.0]
    for slot in ("weights:prox", "step:passes"):
        with pytest.raises(PlanError, match="fine-tunes without claiming it"):
            MethodSet([make("m", Claims(slots=frozenset({slot})), after_step=tunes)]).after_step(ctx)
    MethodSet([make("m", Claims(slots=frozenset({"weights:edit"})), after_step=tunes)]).after_step(ctx)
    assert called == [(("task",), {"names": ["a"], "steps": 2, "lr": 0.1})]
