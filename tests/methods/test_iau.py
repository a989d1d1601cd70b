"""IAU: the formula's step and the sign step by hand, and a stage without training."""

from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.methods.iau import IAU
from tests.fakes.forgetting import STAGES, trained
from tests.fakes.settings import shipped_config
from tests.fakes.steps import Weights, context, rows, unit


class Quadratic(Weights):
    """Loss (theta - x)^2 / 2 of rows x, one token each; theta is tensor A."""

    def __init__(self, theta):
        super().__init__(A=torch.tensor([theta]), B=torch.tensor([0.0]))

    def gradient_pass(self, given, *, rows):
        for start in range(0, len(given), rows):
            part = given[start : start + rows]
            gradient = sum(float(self.tensors["A"]) - float(r.answer) for r in part) / len(part)
            full = {"A": torch.tensor([gradient]), "B": torch.tensor([0.0])}
            found = SimpleNamespace(units=lambda: [unit()], full=lambda u, full=full: full)
            yield SimpleNamespace(target_count=len(part)), found


def valued(*values):
    from dataclasses import replace

    made = rows("t", len(values))
    return [replace(r, turns=(r.turns[0], replace(r.turns[1], text=str(v)))) for r, v in zip(made, values, strict=True)]


def stepped(retain=(0, 1, 2), forget=(9,), **settings):
    """theta from the optimum 3 of {0, 1, 2, 9} after the step."""
    method, weights = IAU(IAU.Config(**settings)), Quadratic(3.0)
    ctx = context(weights=weights)
    ctx.gradient_pass, ctx.data.stage_rows, ctx.data.forget_rows = (
        weights.gradient_pass,
        lambda: valued(*retain),
        lambda: valued(*forget),
    )
    method.on_stage_start(ctx)
    return float(weights.tensors["A"]), method


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_oracles(batch):
    """g = 2 - (-6) = 8 however rows are batched: the formula at .1 gives 2.2, a sign step of .001 gives 2.999."""
    theta, method = stepped(lr=0.1, step="formula", batch=batch)
    assert theta == pytest.approx(2.2) and method.state_dict() == {"norm": pytest.approx(8.0)}
    assert stepped(lr=0.001, step="sign", batch=batch)[0] == pytest.approx(2.999)
    assert method.tensors.names("direction") == method.tensors.names("sum") == []


def test_a_step_of_0_and_sets_that_pull_alike():
    assert stepped(lr=0.0)[0] == 3.0
    with pytest.raises(TrainingError, match="same gradient"):
        stepped(retain=(9,), forget=(9,))


def test_a_stage_of_no_steps_is_edited_and_its_rows_are_only_read_in_passes(tmp_path):
    """``epochs: 0`` with a merged adapter; beside an objective it is that objective's start."""
    stage = {**STAGES[1], "epochs": 0}
    plan, result = trained(tmp_path / "a", {"use": "iau", "rows": 16}, stages=[stage])
    assert plan.stages[0].steps == 0 and any(
        "adapter" in f for f in result["01-word-retain" if "01-word-retain" in result else plan.stages[0].folder]
    )
    plan, _ = trained(
        tmp_path / "b", {"use": "iau", "rows": 16}, {"use": "npo", "per_step": 4}, stages=STAGES[1:], max_steps=1
    )
    assert plan.stages[0].steps == 1


def test_state_and_settings():
    method = IAU(IAU.Config())
    method.load_state_dict({"norm": 2.0})
    assert method.state_dict() == {"norm": 2.0}
    assert shipped_config(IAU) == IAU.Config()
