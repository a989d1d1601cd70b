import pytest
import torch

from mcit.methods.random_smoothing import RandomSmoothing
from tests.fakes.quadratic import Step, context
from tests.fakes.settings import shipped_config


def method(**settings):
    return RandomSmoothing(RandomSmoothing.Config(**settings))


def test_the_mean_of_the_draws():
    """Gradient = weights: the mean of three noisy places, each drawn from seed, step, number and name; task's (5, 7) added."""
    places = []

    def gradient(x, y):
        places.append((float(x), float(y)))
        return x.clone(), y.clone()

    step = Step(gradient, (1.0, 2.0), rest=(5.0, 7.0))
    method(sigma=0.1).passes(step, context())
    assert len({p for p in places}) == 3 and step.order == [("forget",)] * 3 + [("task",)]
    assert step.result == pytest.approx([5 + sum(p[0] for p in places) / 3, 7 + sum(p[1] for p in places) / 3])
    assert [float(w) for w in step.weights.values()] == [1.0, 2.0]
    first, again, later = ([], [], [])
    for out, at in ((first, 0), (again, 0), (later, 1)):
        step = Step(lambda x, y, out=out: (out.append(float(x)), x, y)[1:], (0.0, 0.0))
        before = torch.get_rng_state()
        method(sigma=0.1).passes(step, context(step=at))
        assert torch.equal(torch.get_rng_state(), before)
    assert first == again != later


def test_without_noise_it_is_the_host_alone():
    step = Step(lambda x, y: (x, y), (1.0, 1.0))
    method(sigma=0.0).passes(step, context())
    assert step.order == [("task", "forget")]
    assert [method(sigma=s).step_passes for s in (0.0, 0.1)] == [1, 3]


def test_settings():
    assert shipped_config(RandomSmoothing) == RandomSmoothing.Config()
