"""The profile of a whole run, and its bytes, are looked at in tests/cli/test_run.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mcit.core.errors import StateError
from mcit.core.profile import profiled
from mcit.core.ranks import ONE
from mcit.runs.layout import RunLayout
from mcit.runs.profile import read_profile, write_profile
from mcit.train.profiling import kept, watched
from tests.fakes.profiles import start

CPU = torch.device("cpu")
PLAN = SimpleNamespace(config=SimpleNamespace(base=SimpleNamespace(dtype="fp32")))


def run_in(folder):
    return SimpleNamespace(layout=RunLayout(folder), ranks=ONE)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_tower = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.multi_modal_projector = nn.Linear(2, 2)
        self.language_model = nn.Linear(2, 2)

    def forward(self, x):
        return self.language_model(self.multi_modal_projector(self.vision_tower(x)))


def test_tower_and_projector_are_vision_and_hooks_go_again():
    model, parts = Model(), []
    with profiled() as profile:
        own = profile.enter

        def enter(part):
            parts.append(part)
            own(part)

        profile.enter = enter
        with watched(model, CPU):
            model(torch.ones(1, 2))
        model(torch.ones(1, 2))
    assert parts == ["vision", "vision"] and profile.times.peak_bytes > 1 << 20
    with watched(model, CPU):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_earlier_profile_is_kept_and_an_error_still_writes_this_one(tmp_path):
    run = run_in(tmp_path)
    write_profile(run.layout, [start()])
    with profiled(), pytest.raises(KeyboardInterrupt), kept(PLAN, run, CPU):
        raise KeyboardInterrupt
    first, second = read_profile(run.layout)
    assert first == start() and second["device"] == "cpu" and second["matmul_flops"] > 1e8
    with kept(PLAN, run, CPU) as write:
        write()
    assert len(read_profile(run.layout)) == 2  # no profile was taken


def test_a_damaged_file_is_told_before_anything_is_trained(tmp_path):
    run = run_in(tmp_path)
    run.layout.profile.write_text("{}")
    with pytest.raises(StateError, match="profile.json"), kept(PLAN, run, CPU):
        raise KeyboardInterrupt  # not reached
