"""The gradient of a gradient's norm, by hand."""

import pytest

from mcit.core.config import load_yaml
from mcit.core.paths import shipped
from mcit.methods.gradient_penalty import GradientPenalty
from tests.fakes.quadratic import Step, context
from tests.fakes.settings import shipped_config


def method(**settings):
    return GradientPenalty(GradientPenalty.Config(**settings))


def test_the_penalty_has_a_gradient():
    """f = a x^2 / 2: the penalty rho |a x| adds rho a sign(x), not 0."""
    for x, sign in ((2.0, 1.0), (-2.0, -1.0)):
        step = Step(lambda x, y: (3 * x, 0 * y), (x, 0.0))
        method(rho=0.5, mu=0.01).passes(step, context())
        assert step.result == pytest.approx([3 * x + 0.5 * 3 * sign, 0.0], rel=1e-9)


def test_the_norm_over_all_tensors_and_of_each():
    """f = (x^2 + 10 y^2) / 2 at (3, .4): g = (3, 4), |g| = 5, H g / |g| = (.6, 8); per tensor H (1, 1) = (1, 10)."""
    for norm, added in (("whole", (0.6, 8.0)), ("tensors", (1.0, 10.0))):
        step = Step(lambda x, y: (x, 10 * y), (3.0, 0.4), rest=(1.0, 1.0))
        ctx = context()
        method(rho=0.1, norm=norm).passes(step, ctx)
        assert step.result == pytest.approx([4 + 0.1 * added[0], 5 + 0.1 * added[1]], rel=1e-9)
        assert float(ctx.logged["gradient_penalty/norm"]) == pytest.approx(5.0)


def test_restriction_acts_on_the_task():
    preset = {
        k: v for k, v in load_yaml(shipped("configs") / "methods" / "gradient_restriction.yaml").items() if k != "name"
    }
    assert (preset["rho"], preset["loss"], preset["norm"]) == (0.005, "task", "tensors")
    step = Step(lambda x, y: (x, y), (1.0, 1.0), streams=("task", "replay"))
    method(**preset).passes(step, context())
    assert step.order == [("task",), ("task",), ("replay",)]


def test_at_0_it_is_the_host_alone():
    step = Step(lambda x, y: (x, y), (1.0, 1.0))
    method(rho=0.0).passes(step, context())
    assert step.order == [("task", "forget")] and [method(rho=r).step_passes for r in (0.0, 1.0)] == [1, 2]


def test_settings():
    assert shipped_config(GradientPenalty) == GradientPenalty.Config()
