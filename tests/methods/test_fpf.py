import pytest
import torch

from mcit.methods.fpf import FPF
from tests.fakes.bench import run_plan
from tests.fakes.method_plans import plan_with
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import Weights, context, rows


def staged(method, moves, *, start=(0.0, 0.0)):
    """A stage of steps that put A at given values; returns what was logged and every fine-tuning asked for."""
    weights = Weights(A=torch.tensor(start), B=torch.tensor([1.0]))
    ctx, asked = context(weights=weights, rows=rows("t", 9)), []
    ctx.stage.optim = type("Optim", (), {"lr": 0.5})
    ctx.fine_tune = lambda source, **given: asked.append((len(source), given)) or []
    method.on_stage_start(ctx)
    for value in moves:
        weights.tensors["A"] = torch.tensor(value)
        method.after_step(ctx)
    method.on_stage_end(ctx)
    return ctx.logged, asked


def test_drift_of_a_stage_and_fine_tuning_at_its_end():
    """A goes from (0, 0) to (1, 2), B stays: 3 / 3 numbers = 1."""
    method = FPF(FPF.Config(keep=4, steps=7))
    logged, asked = staged(method, [(5.0, 5.0), (1.0, 2.0)])
    assert logged == {"drift/m": pytest.approx(1.0)}
    assert asked == [(4, {"names": ["m.lora_A", "m.lora_B"], "steps": 7, "lr": pytest.approx(0.05)})]
    assert method.tensors.names("start") == []


def test_k_fpf_counts_steps_over_stages_and_not_at_stage_ends():
    """Every 3 steps: stages of 2 and 2 and 2 are tuned after steps 3 and 6."""
    method = FPF(FPF.Config(keep=4, every=3))
    tuned = [len(staged(method, [(1.0, 1.0)] * 2)[1]) for _ in range(3)]
    assert tuned == [0, 1, 1] and method.state_dict()["steps"] == 6


def test_k_fpf_measures_drift_from_its_last_fine_tuning():
    """A moves by (3, 0) before the fine-tuning after step 2, and by (0, 1.5) after it: 1.5 / 3 numbers."""
    logged, _ = staged(FPF(FPF.Config(keep=4, every=2)), [(1.0, 0.0), (3.0, 0.0), (3.0, 1.5)])
    assert logged == {"drift/m": pytest.approx(0.5)}


def test_state_comes_back():
    method = FPF(FPF.Config(keep=4))
    staged(method, [(1.0, 1.0)])
    again = FPF(FPF.Config())
    again.load_state_dict(method.state_dict())
    assert again.state_dict() == method.state_dict()


def test_modules_that_are_not_chosen_keep_their_bits(tmp_path):
    """After the first stage of a real run only the chosen tensors differ from a run that does not fine-tune."""
    weights = []
    for steps in (0, 3):
        changes = {"fpf": {"steps": steps, "share": 0.05}}
        result = run_plan(plan_with("fpf", changes=changes, stages=[{"recipe": "tiny/letter"}]), tmp_path / str(steps))
        weights.append({n: p.detach().clone() for n, p in result["model"].named_parameters()})
    changed = [n for n, p in weights[0].items() if not torch.equal(p, weights[1][n])]
    assert changed and len(changed) < 8


def test_settings_and_estimate():
    assert FPF.Config() == shipped_config(FPF)
    assert refused(FPF, share=0) == ["share"]
    assert FPF(FPF.Config()).state_bytes({"a": (3, 2), "b": (5,)}, stages=3) == 44
