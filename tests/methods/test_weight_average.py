import pytest
import torch

from mcit.core.errors import PlanError
from mcit.methods.weight_average import WeightAverage
from tests.fakes.bench import plan_of
from tests.fakes.settings import shipped_config
from tests.fakes.steps import Weights, context


def run(method, values):
    """Weights A after each step; what is committed."""
    weights = Weights(A=torch.tensor([0.0]), B=torch.tensor([0.0]))
    ctx = context(weights=weights)
    ctx.total_steps = len(values)
    method.on_stage_start(ctx)
    for step, value in enumerate(values):
        ctx.step, weights.tensors["A"] = step, torch.tensor([value])
        method.after_step(ctx)
    method.on_stage_end(ctx)
    return weights.tensors["A"].item()


def test_the_mean_of_the_steps_that_count():
    """1, 2, 6 from the first on: 3; from step 3 of 6, every 2: steps 3 and 5; a share of .5 begins there too."""
    assert run(WeightAverage(WeightAverage.Config(start=0, every=1)), [1.0, 2.0, 6.0]) == pytest.approx(3.0)
    for start in (3, 0.5):
        method = WeightAverage(WeightAverage.Config(start=start, every=2))
        assert run(method, [9.0, 9.0, 1.0, 9.0, 3.0, 9.0]) == pytest.approx(2.0)
    assert method.tensors.names("mean") == [] and method.state_dict() == {"count": 2}


def test_a_stage_that_ends_before_the_first_keeps_its_weights():
    assert run(WeightAverage(WeightAverage.Config(start=9)), [1.0, 2.0]) == 2.0


def test_a_start_that_is_not_reached_is_refused():
    with pytest.raises(PlanError, match="not reached in 4 steps"):
        plan_of(defaults={"methods": [{"use": "weight_average", "start": 5}]})


def test_state_and_settings():
    method = WeightAverage(WeightAverage.Config())
    method.load_state_dict({"count": 3})
    assert method.state_dict() == {"count": 3} and method.state_bytes({"a": (3, 2)}, stages=2) == 24
    assert shipped_config(WeightAverage) == WeightAverage.Config()
