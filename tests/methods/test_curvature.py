"""The change of a gradient along itself, and its true gradient."""

import pytest
import torch

from mcit.methods.curvature import Curvature
from tests.fakes.quadratic import Step, context
from tests.fakes.settings import shipped_config


def method(**settings):
    return Curvature(Curvature.Config(**settings))


def test_the_change_by_hand():
    """f = (x^2 + 10 y^2) / 2 at (1, 1), mu .1: |d| = .995087; the retain gradient is added once."""
    step, ctx = Step(lambda x, y: (x, 10 * y), (1.0, 1.0), rest=(5.0, 7.0)), context()
    method(mu=0.1).passes(step, ctx)
    assert float(ctx.logged["curvature/change"]) == pytest.approx(0.995087, rel=1e-6)
    assert step.order == [("forget",)] * 4 + [("task",)]
    assert [float(w) for w in step.weights.values()] == [1.0, 1.0]


@pytest.mark.parametrize("cubic", [0.0, 0.7])
def test_the_gradient_is_the_true_one(cubic):
    """Against autograd through g, v and the place ahead, on a quadratic (where v alone turns) and with third derivatives."""
    mu, rho = 1e-3, 0.3

    def loss(x, y):
        return 0.5 * (x**2 + 10 * y**2) + x * y + cubic * (x**3 + x * y**2)

    def gradient(x, y):
        return x + y + cubic * (3 * x**2 + y**2), 10 * y + x + 2 * cubic * x * y

    at = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)

    def g(p):
        return torch.stack(gradient(p[0], p[1]))

    here = g(at)
    change = torch.linalg.vector_norm(g(at + mu * here / here.norm()) - here)
    (true,) = torch.autograd.grad(loss(*at) + rho * change, at)
    step = Step(gradient, (1.0, 0.5))
    method(mu=mu, rho=rho).passes(step, context())
    plain = here.detach().tolist()
    added = [r - p for r, p in zip(step.result, plain, strict=True)]
    assert added == pytest.approx([float(t) - p for t, p in zip(true, plain, strict=True)], rel=0.02, abs=1e-7)


def test_at_0_it_is_the_host_alone():
    step = Step(lambda x, y: (x, y), (1.0, 1.0))
    method(rho=0.0).passes(step, context())
    assert step.order == [("task", "forget")] and [method(rho=r).step_passes for r in (0.0, 1.0)] == [1, 4]


def test_settings():
    assert shipped_config(Curvature) == Curvature.Config()
