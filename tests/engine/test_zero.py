"""One process; tests/contracts/test_engines.py has the engine on two."""

import pytest
import torch
from torch import nn

from mcit.engine.base import EngineSpec
from mcit.engine.plain import PlainEngine
from mcit.engine.zero import ZeroEngine, groups_of, skip_idle
from tests.engine.test_plain import OPTIM, full_step
from tests.fakes.engine_checks import distance
from tests.fakes.models import adapted, tiny_model
from tests.fakes.toy import toy_batch


@pytest.fixture
def group(monkeypatch):
    """A process group of one, gone afterwards."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    yield
    import deepspeed.comm.comm as comm
    from deepspeed.utils import groups

    from mcit.engine import world

    comm.cdb = None
    for name in [n for n in vars(groups) if n.isupper() and "GROUP" in n]:  # DeepSpeed keeps groups for good
        setattr(groups, name, {} if isinstance(getattr(groups, name), dict) else None)
    world.shutdown()


@pytest.mark.parametrize(("stage", "offload"), [(2, "none"), (3, "parameters")])
def test_one_process_trains_as_plain_does(stage, offload, group):
    """With eps 1e-4: at 1e-8 AdamW's first steps turn the rounding of gradients near 1e-8 into whole steps."""
    results, optim = [], OPTIM.model_copy(update={"eps": 1e-4})
    for make in (PlainEngine, lambda m, s: ZeroEngine(m, s, stage=stage, offload=offload)):
        model = tiny_model()
        spec = EngineSpec(adapted(model), optim, 10, is_projector=lambda n: "projector" in n)
        start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        engine = make(model, spec)
        for i in range(3):
            full_step(engine, [toy_batch(model, seed=i)])
            engine.step()
        engine.finish()
        results.append({n: p.detach() - start[n] for n, p in model.named_parameters() if p.requires_grad})
    assert distance(results[1], results[0]) < 1e-5


def test_an_idle_group_is_passed_over():
    """Neither decay nor a step count; the groups are all there afterwards."""
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([{"params": [a]}, {"params": [b]}], lr=0.1, weight_decay=0.5)
    assert groups_of(optimizer, {"a": a, "b": b}) == {"a": 0, "b": 1}
    skip_idle(optimizer)
    for idle in (True, False):
        a.grad = b.grad = torch.ones(2)
        optimizer.param_groups[1]["idle"] = idle
        optimizer.step()
        assert len(optimizer.param_groups) == 2
        if idle:
            assert torch.equal(b.detach(), torch.ones(2)) and b not in optimizer.state
    assert optimizer.state[a]["step"] == 2 and optimizer.state[b]["step"] == 1
