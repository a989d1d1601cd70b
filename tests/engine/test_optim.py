import sys

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from mcit.core.errors import ConfigError, PlanError
from mcit.core.schema import OptimConfig
from mcit.engine.optim import PAGED, SMALLEST, build_optimizer, lr_factor, moment_line, set_lr, warmup_steps


def test_warmup_is_a_share_below_one_and_steps_from_one():
    assert warmup_steps(OptimConfig(warmup=0.1), 25) == 3
    assert warmup_steps(OptimConfig(warmup=4), 25) == 4


def test_schedules_by_hand():
    """10 steps, 2 of warm-up: factors 1/2, 1; then over the 8 left, cosine at 4/8 is 1/2 and linear at 2/8 is 3/4."""
    cosine = OptimConfig(schedule="cosine", warmup=2)
    assert [lr_factor(s, 10, cosine) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert lr_factor(6, 10, cosine) == pytest.approx(0.5)
    linear = OptimConfig(schedule="linear", warmup=2)
    assert lr_factor(4, 10, linear) == pytest.approx(0.75)
    assert lr_factor(9, 10, OptimConfig(schedule="constant", warmup=2)) == 1.0
    floor = OptimConfig(schedule="linear", warmup=0, min_lr_share=0.2)
    assert lr_factor(5, 10, floor) == pytest.approx(0.2 + 0.8 * 0.5)


@pytest.mark.parametrize(
    ("schedule", "warmup"), [("cosine", 0.03), ("cosine", 10), ("linear", 4), ("constant", 3), ("cosine", 0)]
)
def test_from_zero_it_is_the_schedule_of_transformers(schedule, warmup):
    """Every factor of 100 steps, the first one 0; `from_first` never is."""
    config = OptimConfig(schedule=schedule, warmup=warmup, warmup_from="zero")
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warm = warmup_steps(config, 100)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=100)
    for step in range(100):
        assert lr_factor(step, 100, config) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert lr_factor(0, 100, config) == float(warm == 0)
    assert lr_factor(0, 100, OptimConfig(schedule=schedule, warmup=warmup)) > 0


def test_groups_projector_and_decay():
    named = {
        "p.weight": nn.Parameter(torch.ones(2, 2)),
        "p.bias": nn.Parameter(torch.ones(2)),
        "x": nn.Parameter(torch.ones(2, 2)),
    }
    config = OptimConfig(lr=1.0, lr_projector=0.1, weight_decay=0.5)
    optimizer = build_optimizer(named, config, is_projector=lambda n: n.startswith("p."))
    found = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}
    assert found == {(0.1, 0.5): 1, (0.1, 0.0): 1, (1.0, 0.5): 1}
    assert set_lr(optimizer, 0.5) == 0.5
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.05, 0.5]


def test_what_only_images_reach_has_groups_of_its_own():
    named = {n: nn.Parameter(torch.ones(2, 2)) for n in ("tower.x", "projector.x", "language.x")}
    seen = {"is_projector": lambda n: "projector" in n, "is_vision": lambda n: "language" not in n}
    groups = build_optimizer(named, OptimConfig(lr=1.0, lr_projector=0.1), **seen).param_groups
    assert sorted((g["lr"], len(g["params"])) for g in groups) == [(0.1, 1), (1.0, 1), (1.0, 1)]


def sized():
    return {"large": nn.Parameter(torch.ones(64, 64)), "below": nn.Parameter(torch.ones(SMALLEST - 1))}


def test_eight_bit_moments_from_4096_numbers_on():
    """AdamW's first step is lr * sign(gradient) whatever the moments are stored in: 1 - 0.5 = 0.5."""
    parameters = sized()
    optimizer = build_optimizer(parameters, OptimConfig(kind="adamw8bit", lr=0.5), is_projector=lambda n: False)
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    states = {n: optimizer.state[p]["state1"].dtype for n, p in parameters.items()}
    assert states == {"large": torch.uint8, "below": torch.float32}
    assert all(torch.allclose(p.detach(), torch.full_like(p, 0.5), atol=1e-5) for p in parameters.values())
    assert set_lr(optimizer, 0.5) == 0.25
    line = moment_line(parameters, OptimConfig(kind="adamw8bit"))
    assert "1 of 2 tensors (4,096 of 8,191 numbers)" in line and "below 4,096" in line
    assert moment_line(parameters, OptimConfig()) is moment_line(parameters, OptimConfig(kind="paged_adamw")) is None


@pytest.mark.parametrize("kind", sorted(PAGED))
def test_paged_moments_need_a_gpu(kind):
    with pytest.raises(PlanError, match="pages moments between GPU and host memory") as error:
        build_optimizer(sized(), OptimConfig(kind=kind), is_projector=lambda n: False)
    assert "adamw8bit" in error.value.fix


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        build_optimizer(sized(), OptimConfig(kind="adamw8bit"), is_projector=lambda n: False)
