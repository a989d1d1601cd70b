"""NPO: the paper's sums, the token-mean form, the stored reference."""

import dataclasses
import json

import pytest
import torch

from mcit.methods.npo import NPO
from tests.fakes.bench import plan_of
from tests.fakes.forgetting import STAGES, batch_of, output, step_context, trained
from tests.fakes.pace import seconds_per_step
from tests.fakes.settings import shipped_config


def real(out):
    return dataclasses.replace(out, real_rows=tuple(out.row_N.unique().tolist()))


def loss(out, reference, **settings):
    method = NPO(NPO.Config(**settings))
    method.reference = {f"t/{i}": value for i, value in enumerate(reference)}
    return method.loss_term(real(out), batch_of(len(reference)), step_context())


def test_oracles():
    """beta 0.1: S = S_ref 13.862944; ten more 6.265234 with slope -0.537883; five fewer 19.481540; summed over rows."""
    out = output([3.0, 2.0], [10.0, 6.0], [1.0])
    term = loss(out, [5.0, 6.0, 6.0])
    assert term.per == "rows" and term.sum.item() == pytest.approx(13.862944 + 6.265234 + 19.481540, rel=1e-6)
    term.sum.backward()
    assert out.nll_N.grad.tolist()[:4] == pytest.approx([-1.0, -1.0, -0.537883, -0.537883], rel=1e-5)


def test_the_token_mean_form_divides_by_the_answers_length():
    """Row of two tokens ten above: a margin of 5, at beta 0.2 as the sum form at 10 and 0.1, halved; factor gamma."""
    term = loss(output([10.0, 6.0]), [6.0], form="token_mean", beta=0.2, gamma=2.0)
    assert term.sum.item() == pytest.approx(2 * 6.265234 / 2, rel=1e-6)


def test_rows_without_a_supervised_token_are_no_rows():
    out = dataclasses.replace(output([5.0]), row_N=torch.tensor([1]), real_rows=(1,))
    method = NPO(NPO.Config())
    method.reference = {"t/0": 100.0, "t/1": 5.0}
    assert method.loss_term(out, batch_of(2), step_context()).sum.item() == pytest.approx(13.862944)


def test_the_reference_is_that_of_the_stage_start_model(tmp_path):
    """In the first step of a stage every row is at its reference: 2 ln 2 / beta, whatever the model."""
    plan, _ = trained(tmp_path, {"use": "npo", "per_step": 4}, stages=STAGES[1:], max_steps=1)
    stored = json.loads((tmp_path / plan.stages[0].folder / "methods" / "npo" / "state.json").read_text())["state"]
    assert len(stored["reference"]) == plan.stages[0].forget[0].rows["train"] and min(stored["reference"].values()) > 1


@pytest.mark.slow
def test_the_stored_reference_keeps_a_step_near_a_plain_one(tmp_path, monkeypatch):
    """Eight retained and eight forgotten rows against sixteen plain ones."""
    took = {}
    for name, methods, batch in (("npo", [{"use": "npo", "per_step": 8}], 8), ("plain", [], 16)):
        optim = {"batch": batch, "lr": 1e-3, "warmup": 0}
        stages = STAGES[1:] if methods else [{"recipe": "tiny/word-retain"}]
        plan = plan_of(stages=stages, defaults={"methods": methods, "max_steps": 14, "epochs": 3, "optim": optim})
        took[name] = seconds_per_step(plan, tmp_path / name, monkeypatch)
    assert took["npo"] <= 1.6 * took["plain"]


def test_state_and_settings():
    method = NPO(NPO.Config())
    method.load_state_dict({"reference": {"t/0": 1.5}})
    assert method.state_dict() == {"reference": {"t/0": 1.5}}
    assert shipped_config(NPO) == NPO.Config()
