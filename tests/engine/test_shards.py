"""Parts of DeepSpeed with one process; with two in tests/contracts/test_engines.py."""

import pytest
import torch

from mcit.engine.base import EngineSpec
from mcit.engine.shards import MOMENTS
from mcit.engine.zero import ZeroEngine
from tests.engine.test_plain import OPTIM, full_step
from tests.engine.test_zero import group  # noqa: F401
from tests.fakes.models import adapted, tiny_model
from tests.fakes.toy import toy_batch


@pytest.mark.parametrize("stage", [2, 3])
def test_a_part_is_read_and_written(stage, group):  # noqa: F811
    model = tiny_model()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    engine = ZeroEngine(model, EngineSpec(adapted(model), OPTIM, 10), stage=stage)
    shards, name = engine._shards, "model.multi_modal_projector.linear_1.bias"
    count = start[name].numel()
    assert shards.span(name) == (0, count) and torch.equal(shards.weight(name), start[name].view(-1))
    assert not shards.has_state(name)
    shards.make_states()
    assert shards.has_state(name) and shards.steps(name) == 0
    for key in MOMENTS:
        shards.moment(name, key).fill_(2.0)
        assert shards.moment(name, key).shape == (count,) and float(shards.moment(name, key).sum()) == 2 * count
    assert float(shards.moment("model.multi_modal_projector.linear_2.bias", "exp_avg").abs().sum()) == 0
    shards.set_steps(name, 4)
    assert shards.steps(name) == 4
    shards.put_weight(name, torch.full_like(start[name], 3.0))
    assert shards.weight(name).tolist() == [3.0] * count
    full_step(engine, [toy_batch(model)])
    assert float(shards.gradient(name).abs().sum()) > 0
    shards.put_gradient(name, torch.full((count,), 0.5))
    assert shards.gradient(name).tolist() == [0.5] * count
    engine.discard()
    engine.finish()
    assert dict(model.named_parameters())[name].tolist() == [3.0] * count
