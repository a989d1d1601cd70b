"""SAM: the perturbation and the gradient by hand, exact restore, neutral at rho 0."""

import pytest
import torch

from mcit.methods.sam import SAM
from tests.fakes.bench import plan_of, tensors_of
from tests.fakes.forgetting import STAGES, trained
from tests.fakes.pace import seconds_per_step
from tests.fakes.quadratic import Step, context
from tests.fakes.settings import refused, shipped_config


def valley(x, y):
    """Gradient of (x^2 + 10 y^2) / 2."""
    return x, 10 * y


def test_the_perturbation_has_length_rho():
    """g = (3, 4), rho .01: eps = (.006, .008)."""
    seen = []
    step = Step(lambda x, y: (seen.append((float(x), float(y))), torch.tensor(3.0), torch.tensor(4.0))[1:], (0.0, 0.0))
    SAM(SAM.Config(rho=0.01)).passes(step, context())
    assert seen[1] == pytest.approx((0.006, 0.008)) and float(step.weights["x"]) == 0.0


def test_the_gradient_is_that_of_the_worst_place_nearby():
    """f at (1, 1), rho .1: (1.00995037, 10.9950371); the retain gradient (5, 7) is taken here."""
    step = Step(valley, (1.0, 1.0), rest=(5.0, 7.0))
    ctx = context()
    SAM(SAM.Config(rho=0.1)).passes(step, ctx)
    assert step.result == pytest.approx([6.00995037, 17.9950371], rel=1e-8)
    assert step.order == [("forget",), ("forget",), ("task",)] and float(ctx.logged["sam/norm"]) == pytest.approx(
        10.049876
    )


def test_without_a_forget_stream_or_rho_it_is_the_host_alone():
    for rho, streams in ((0.1, ("task",)), (0.0, ("task", "forget"))):
        step = Step(valley, (1.0, 1.0), streams=streams)
        SAM(SAM.Config(rho=rho)).passes(step, context())
        assert step.order == [streams]
    assert [SAM(SAM.Config(rho=r)).step_passes for r in (0.0, 0.1)] == [1, 2]


def test_a_loss_without_gradient_moves_nothing():
    step = Step(lambda x, y: (0 * x, 0 * y), (1.0, 1.0))
    SAM(SAM.Config(rho=0.1)).passes(step, context())
    assert step.result == [0.0, 0.0]


def test_weights_come_back_bit_for_bit(tmp_path):
    """At learning rate 0 a stage of perturbed passes commits what it started with; at rho 0 it is its host."""
    host = {"use": "npo", "per_step": 4}
    still = {"stages": STAGES[1:], "max_steps": 2, "optim": {"batch": 8, "lr": 0.0, "warmup": 0}}
    a = trained(tmp_path / "a", host, {"use": "sam", "rho": 0.5}, **still)[1]["model"].state_dict()
    b = trained(tmp_path / "b", host, **still)[1]["model"].state_dict()
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_at_rho_0_it_is_its_host(tmp_path):
    host = {"use": "npo", "per_step": 4}
    plain = trained(tmp_path / "a", host, stages=STAGES[1:], max_steps=2)[1]
    neutral = trained(tmp_path / "b", host, {"use": "sam", "rho": 0.0}, stages=STAGES[1:], max_steps=2)[1]
    found = [{k: v for files in tensors_of(r).values() for k, v in files.items()} for r in (plain, neutral)]
    adapters = [{k: v for k, v in files.items() if "methods" not in k} for files in found]
    assert adapters[0] == adapters[1] and adapters[0]


@pytest.mark.slow
def test_it_costs_little_more_than_twice_its_host(tmp_path, monkeypatch):
    """The forget rows pass twice, the retained ones once."""
    host, took = {"use": "npo", "per_step": 8}, {}
    for name, methods in (("host", [host]), ("sam", [host, {"use": "sam"}])):
        plan = plan_of(stages=STAGES[1:], defaults={"methods": methods, "max_steps": 14})
        took[name] = seconds_per_step(plan, tmp_path / name, monkeypatch)
    assert took["sam"] <= 2.1 * took["host"]


def test_settings():
    assert shipped_config(SAM) == SAM.Config() and refused(SAM, rho=-1.0) == ["rho"]
