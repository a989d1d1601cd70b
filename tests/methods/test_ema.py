import pytest
import torch

from mcit.methods.ema import EMA
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import Weights, context


def run(method, weights, steps):
    """Start, the given values of A after each step, end; the weights that are committed."""
    ctx = context(weights=weights)
    method.on_stage_start(ctx)
    for value in steps:
        weights.tensors["A"] = torch.tensor([value])
        method.after_step(ctx)
    method.on_stage_end(ctx)
    return weights.tensors["A"].item()


def pair():
    return Weights(A=torch.tensor([1.0]), B=torch.tensor([0.0]))


def test_two_steps_by_hand():
    """Decay .9, start 1, weights 2 and 4: .9 * 1 + .1 * 2 = 1.1; .9 * 1.1 + .1 * 4 = 1.39."""
    method = EMA(EMA.Config(decay=0.9))
    assert run(method, pair(), [2.0, 4.0]) == pytest.approx(1.39)
    assert method.tensors.names("ema") == []


def test_without_decay_the_raw_weights_are_committed():
    assert run(EMA(EMA.Config(decay=0.0)), pair(), [0.1, 0.3]) == torch.tensor(0.3).item()


def test_a_stage_without_steps_stays_as_it_is():
    assert run(EMA(EMA.Config()), pair(), []) == 1.0


def test_estimate_and_settings():
    assert EMA(EMA.Config()).state_bytes({"a": (3, 2), "b": (5,)}, stages=3) == 44
    assert EMA.Config() == shipped_config(EMA)
    assert refused(EMA, decay=1.0) == ["decay"] and refused(EMA, decay=0) == []
