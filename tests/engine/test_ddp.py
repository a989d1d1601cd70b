"""With one process; what DDP does with two is in tests/contracts/test_engines.py."""

import os

import pytest
from torch.nn.parallel import DistributedDataParallel

from mcit.engine import world
from mcit.engine.ddp import wrapped
from tests.fakes.models import adapted, tiny_model


@pytest.fixture
def two(monkeypatch):
    """The environment of a rank, so that accelerate sees a distributed job, over a group of one."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    model = tiny_model()
    adapted(model)
    world.alone(next(model.parameters()).device)
    yield model
    world.shutdown()


def test_the_environment_and_accelerates_state_are_left_as_they_were(two):
    from accelerate.state import PartialState

    before = dict(os.environ)
    out = wrapped(two)
    assert not PartialState._shared_state and dict(os.environ) == before
    assert getattr(out, "module", out) is two
    assert not isinstance(out, DistributedDataParallel) or out.find_unused_parameters
