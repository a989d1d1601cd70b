"""Merging towards the mean of earlier adapters."""

from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import McitError
from mcit.methods.mos import MOS
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.method_plans import POOL, ROUTER
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import Weights, context, rows

STAGES = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"}, {"recipe": "tiny/word"}]


def here(weights, *, batch=2, count=0):
    ctx = context(weights=weights, rows=rows("t", count))
    ctx.stage.optim, ctx.total_steps = SimpleNamespace(batch=batch), 2
    return ctx


def after(*ends, **settings):
    """A method and its weights after stages that ended with these values of A."""
    method, weights = MOS(MOS.Config(**settings)), Weights(A=torch.zeros(1), B=torch.zeros(1))
    for end in ends:
        method.on_stage_start(here(weights))
        weights.tensors["A"] = torch.tensor([end])
        method.on_stage_end(here(weights))
    return method, weights


def test_a_merge_by_hand():
    """A 2.0 after earlier ends 1.0 and 0.0 with a = 0.1: 0.9 * 2 + 0.1 * 0.5 = 1.85."""
    method, weights = after(1.0, 0.0)
    weights.tensors["A"] = torch.tensor([2.0])
    method.after_step(here(weights))
    assert weights.tensors["A"].item() == pytest.approx(1.85)
    assert method.state_dict() == {"stages": {"m.lora_A": 2, "m.lora_B": 2}}


def test_the_first_stage_is_left_alone_bit_for_bit():
    method, weights = after()
    weights.tensors["A"] = torch.tensor([0.1])
    method.on_stage_start(here(weights))
    method.after_step(here(weights))
    assert torch.equal(weights.tensors["A"], torch.tensor([0.1])) and method.tensors.names("sum") == []


@pytest.mark.parametrize(("warm", "start"), [(True, 3.0), (False, 0.25)])
def test_a_stage_begins_with_the_last_adapter_or_as_it_is(warm, start):
    method, weights = after(1.0, 3.0, warm_start=warm)
    weights.tensors["A"] = torch.tensor([0.25])
    method.on_stage_start(here(weights))
    assert weights.tensors["A"].item() == start and method.tensors.names("last") == ["m.lora_A", "m.lora_B"][: 2 * warm]


def test_the_released_code_leaves_a_quarter_per_step_with_twelve_blocks(monkeypatch):
    """0.9 ** 13 = 0.254 of what a step trained is left when the next one begins to train, of 1 towards a mean of 0."""
    monkeypatch.setattr("mcit.methods.mos._blocks", lambda ctx: 12)
    method, weights = after(0.0, authors_compat=True)
    weights.tensors["A"] = torch.tensor([1.0])
    method.after_step(here(weights))
    assert weights.tensors["A"].item() == pytest.approx(0.9**13, rel=1e-5)
    ctx = here(weights)
    ctx.step, weights.tensors["A"] = 1, torch.tensor([1.0])
    method.after_step(ctx)  # the last step: no pass follows
    assert weights.tensors["A"].item() == pytest.approx(0.9, rel=1e-6)


def test_as_released_an_adapter_ends_as_the_mean_of_its_predecessors(monkeypatch):
    """40 rows in batches of 2: 12 merges for each of 20 batches leave 0.9 ** 240 = 1e-11."""
    monkeypatch.setattr("mcit.methods.mos._blocks", lambda ctx: 12)
    method, weights = after(1.0, 0.0, authors_compat=True)
    assert method.state_dict()["stages"]["m.lora_A"] == 2
    weights.tensors["A"] = torch.tensor([9.0])
    method.on_stage_end(here(weights, count=40))
    mean = method.tensors.require("sum", "m.lora_A") / 3
    assert weights.tensors["A"].item() == pytest.approx(0.5, abs=1e-6) and mean.item() == pytest.approx(0.5, abs=1e-6)


def test_without_merges_and_warm_start_a_run_is_the_sequential_one(tmp_path):
    def adapters_of(methods, folder):
        plan = plan_of(defaults={"adapter": POOL, "methods": methods, "max_steps": 2}, router={"use": "oracle"})
        return {
            s: {f: h for f, h in files.items() if "methods/" not in f}
            for s, files in tensors_of(run_plan(plan, folder)).items()
        }

    off = {"name": "mos", "momentum": 0.0, "warm_start": False}
    assert adapters_of([off], tmp_path / "off") == adapters_of([], tmp_path / "without")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"router": {"use": "codebook"}}, "continues adapters of earlier stages"),
        (
            {"stages": [STAGES[0], {**STAGES[1], "adapter": {**POOL, "alpha": 16}}]},
            "adapter.alpha is 16.0, in stage 01-letter 8.0",
        ),
        (
            {"defaults": {"adapter": {"carry": "stack"}, "methods": [{"name": "mos"}]}, "router": None},
            "needs carry:pool",
        ),
    ],
)
def test_what_it_does_not_go_with(changes, what):
    given = {"defaults": {"adapter": POOL, "methods": [{"name": "mos"}]}, "stages": STAGES[:2], "router": ROUTER}
    with pytest.raises(McitError) as caught:
        plan_of(**{**given, **changes})
    assert any(what in p.what for p in caught.value.problems), caught.value


def test_estimate_and_settings():
    assert MOS(MOS.Config()).state_bytes({"a": (3, 2)}, stages=5) == 48
    assert MOS(MOS.Config(warm_start=False)).state_bytes({"a": (3, 2)}, stages=5) == 24
    assert MOS.Config() == shipped_config(MOS)
    assert refused(MOS, momentum=1.0) == ["momentum"] and refused(MOS, momentum=0) == []
