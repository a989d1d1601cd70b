"""Refusals, and what is said without the picture."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import DataError, PlanError
from mcit.core.types import Counts
from mcit.methods.formulas.refusals import refused_row
from mcit.methods.refusal import Refusal
from tests.fakes import steps
from tests.fakes.bench import plan_of, tensors_of
from tests.fakes.forgetting import STAGES, answered, batch_of, output, stage, started, step_context, trained
from tests.fakes.settings import refused, shipped_config
from tests.fakes.sharded import ShardedEngine

FORGET = {"name": "bounded_forget", "per_step": 4}


def method(**settings):
    return Refusal(Refusal.Config(**settings))


def test_blind_target_is_the_divergence_from_the_blind_reference():
    """beta 0, omega 3: KL((3/4, 1/4) || (1/2, 1/2)) = 0.130812 on the one pushed token; the spared one does not count."""
    given = method(say="blind", omega=3)
    given._spare = [0, 1]
    out = output([1.0, 1.0], vocabulary=2)
    blind = dataclasses.replace(out, logits_NV=torch.tensor([[math.log(3), 0.0], [9.0, 0.0]]))
    ctx, seen = step_context(rows=1, tokens=2), []
    ctx.reference = lambda batch: seen.append(batch) or blind
    sighted = dataclasses.replace(batch_of(1), pixels={"pixel_values": torch.ones(1, 3, 2, 2)})
    assert given.loss_term(out, sighted, ctx).sum.item() == pytest.approx(3 * 0.130812, abs=1e-5)
    assert not seen[0].pixels["pixel_values"].any()


def test_blind_divergence_is_a_mean_over_the_pushed_tokens_of_the_step():
    """0.130812 on each of 3 tokens in 2 rows, of 6 in 4 rows of the step: omega 3 times 4 rows times 3 * 0.130812 / 6."""
    given = method(say="blind", omega=3)
    out, ctx = output([1.0, 1.0], [1.0], vocabulary=2), step_context(rows=4, tokens=6)
    ctx.reference = lambda batch: dataclasses.replace(out, logits_NV=torch.tensor([[math.log(3), 0.0]] * 3))
    assert given.loss_term(out, batch_of(2), ctx).sum.item() == pytest.approx(3 * 4 * 3 * 0.130812 / 6, abs=1e-5)


def test_omega_zero_is_off():
    """The passes through the reference are what the blind target costs; without it there is no stream and no need."""
    ctx = step_context(rows=1, tokens=1)
    ctx.reference = ctx.forward_pass = None
    for say in ("blind", "refusal"):
        given = method(say=say, omega=0)
        given.on_stage_start(ctx)
        assert given.loss_term(output([1.0]), batch_of(1), ctx) is None
        assert given.streams(SimpleNamespace(forget_rows=lambda: steps.rows("t", 1), seed=5)) == {}
        assert not given.claims.streams and not given.claims.needs and given.check(stage(), None) == []


def test_refusals_replace_every_answer_and_are_drawn_once():
    rows = steps.rows("t", 40)
    given = method(refusals=["no", "never"], omega=2)
    ctx = SimpleNamespace(forget_rows=lambda: rows, seed=5)
    opened = given.streams(ctx)
    assert set(opened) == {"refusal"} and [r.id for r in opened["refusal"].rows] == [r.id for r in rows]
    answers = [r.answer for r in opened["refusal"].rows]
    assert set(answers) == {"no", "never"} and answers == [r.answer for r in given.streams(ctx)["refusal"].rows]
    two = dataclasses.replace(rows[0], turns=rows[0].turns * 2)
    assert [t.text for t in refused_row(two, ["no"], 0).turns] == ["q", "no", "q", "no"]
    found = given.loss_term(output([1.0, 2.0]), batch_of(1, "refusal"), step_context())
    assert (found.sum.item(), found.per) == (6.0, "tokens")


def test_a_refusal_of_ones_own_is_enough():
    assert refused(Refusal, refusals=["no"]) == [] and refused(Refusal, refusals=[]) == ["refusals"]


def test_rows_without_a_picture_have_nothing_to_be_blind_to():
    ctx = SimpleNamespace(forget_rows=lambda: steps.rows("t", 1), seed=5)
    with pytest.raises(DataError, match="no picture") as error:
        method(say="blind").streams(ctx)
    assert error.value.where == "t.json:0:t0"
    assert method().streams(ctx)["refusal"].per_step == 8


def test_what_answers_share_is_looked_at_for_the_blind_target_alone():
    both = answered("forget", [5, 1, 9], [5, 2, 9]), answered("task", [5, 3, 3, 9])
    assert started(method(say="blind"), *both).state_dict() == {"spare": [1, 1]}
    assert started(method(say="blind", spare="none"), *both).state_dict() == {"spare": [0, 0]}
    assert started(method(), *both).state_dict() == {"spare": [0, 0]}
    given = method(say="blind")
    given.load_state_dict({"spare": [2, 1]})
    assert given.state_dict() == {"spare": [2, 1]}


def test_refusing_alone_is_noted_and_needs_rows():
    assert [p.level for p in method().check(SimpleNamespace(name="s", forget=("x",)), None)] == ["note"]
    assert [p.level for p in method().check(SimpleNamespace(name="s", forget=()), None)] == ["problem"]


def test_the_blind_target_needs_a_stream_of_rows_to_forget():
    blind = {"name": "refusal", "say": "blind"}
    with pytest.raises(PlanError, match="needs stream:forget"):
        plan_of(stages=STAGES, defaults={"methods": [blind]})
    assert plan_of(stages=STAGES, defaults={"methods": [FORGET, blind]})


def test_naming_it_alone_is_using_the_shipped_settings():
    assert Refusal.Config() == shipped_config(Refusal)
    assert refused(Refusal, omega=0.5) == [] and refused(Refusal, omega=-0.5) == ["omega"]
    assert refused(Refusal, per_step=0) == ["per_step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods", [[{"name": "refusal", "per_step": 4}], [FORGET, {"name": "refusal", "say": "blind"}]]
)
def test_both_targets_resume_and_shard_bitwise(tmp_path, methods):
    _, straight = trained(tmp_path / "a", *methods)
    _, resumed = trained(tmp_path / "b", *methods, stop_at=(2, 2))
    _, sharded = trained(tmp_path / "c", *methods, engine=ShardedEngine)
    assert tensors_of(straight) == tensors_of(resumed) == tensors_of(sharded)


def test_one_mean_over_retained_and_refused_rows():
    """Retained losses 1, 2, 3 and refused 5: 11 / 4 as one batch, whatever the counts of the two; it is the task's loss."""
    given = method(mean="joint", omega=1.0)
    ctx = step_context()
    ctx.counts = Counts({"task": 3, "refusal": 1}, {"task": 1, "refusal": 1})
    task = given.loss_term(output([1.0, 2.0, 3.0]), batch_of(1, "task"), ctx)
    refused = given.loss_term(output([5.0]), batch_of(1, "refusal"), ctx)
    assert task.per == refused.per == "tokens"
    assert task.sum.item() / 3 + refused.sum.item() / 1 == pytest.approx(11 / 4)
    assert given.claims.slots == {"objective:task"} and given.claims.streams == {"refusal"}
    assert method().loss_term(output([1.0]), batch_of(1, "task"), ctx) is None


def test_alternate_answers_are_said():
    ctx = SimpleNamespace(forget_rows=lambda: steps.rows("t", 1), alternate_rows=lambda: ["other"], seed=5)
    assert method(say="alternate").streams(ctx)["refusal"].rows == ["other"]
    assert method(say="alternate").check(stage_with_forget(), None) == []


def test_a_divergence_has_no_joint_mean():
    (problem,) = method(say="blind", mean="joint").check(stage_with_forget(), None)
    assert problem.fix == "set mean: own"


def stage_with_forget():
    made = stage()
    made.forget = ("something",)
    return made
