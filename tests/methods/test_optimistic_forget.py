"""When a request's stage ends, when it is queued again, and the loss on what is: by hand, and in short runs."""

import json
from types import SimpleNamespace

import pytest

from mcit.methods.optimistic_forget import OptimisticForget
from tests.fakes import steps
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.forgetting import STAGES, answered, batch_of, output, stage, step_context, trained
from tests.fakes.settings import refused, shipped_config

NPO = {"name": "npo", "per_step": 4}


def target(**changes):
    return {"stage": 2, "spare": [0, 0], "queued": False, "loss": None, **changes}


def made(*targets, **settings):
    given = OptimisticForget(OptimisticForget.Config(**{"bound": 4.0, **settings}))
    given.load_state_dict({"targets": list(targets), "met": 0})
    return given


def stepped(given, *rows, spare=(0, 0)):
    """A step whose rows to forget have these token losses; why the stage ends, or nothing."""
    ctx = step_context(rows=len(rows), tokens=sum(map(len, rows)))
    ended = []
    ctx.all_sum, ctx.end_stage = (lambda tensor: tensor), ended.append
    assert given.loss_term(output(*rows), batch_of(len(rows)), ctx) is None
    given.after_step(ctx)
    return ended


def test_three_steps_at_the_bound_end_the_stage():
    """Means 4, 4.5, 3.9, then 4, 5, 4 under a bound of 4: the third of the second run of steps ends it."""
    given = made(target())
    for rows in ([[4.0]], [[4.0], [5.0]], [[3.9]], [[4.0]], [[5.0]]):
        assert stepped(given, *rows) == []
    (reason,) = stepped(given, [4.0, 4.0])
    assert "4.000 is at 4.000 for 3 steps" in reason and given.state_dict()["met"] == 3


def test_shared_tokens_do_not_hide_what_is_forgotten():
    """(5, 0) and (6, 4, 0) without their last tokens: a mean of 5."""
    given = made(target(spare=[0, 1]), patience=1)
    assert stepped(given, [5.0, 0.0], [6.0, 4.0, 0.0])
    assert not stepped(made(target(), patience=1), [5.0, 0.0], [6.0, 4.0, 0.0])


def test_nothing_ends_without_the_stop_or_without_the_stream():
    assert stepped(made(target(), stop=False, patience=1), [9.0]) == []
    ctx = step_context()
    ctx.end_stage = None
    made(target(), patience=1).after_step(ctx)


def test_uniform_is_the_log_of_the_vocabulary():
    assert stepped(made(target(), bound="uniform", patience=1), [2.08]) and not stepped(
        made(target(), bound="uniform", patience=1), [2.07]
    )


def test_queued_rows_are_pushed_up_to_the_bound_and_no_further():
    """(1, 4, 2) and (3, 2), the last of each spared, bound 10: (9 + 6 + 7) / 3; times gamma 2."""
    given = made(target(stage=1, queued=True, spare=[0, 1]), bound=10.0, gamma=2.0)
    ctx = step_context()
    ctx.counts = type(ctx.counts)({"requeued": 5}, {"requeued": 2})
    term = given.loss_term(output([1.0, 4.0, 2.0], [3.0, 2.0]), batch_of(2, "requeued"), ctx)
    assert term.per == "tokens" and term.sum.item() / 5 == pytest.approx(2 * 22 / 3)
    assert given.loss_term(output([11.0, 0.0], [12.0, 0.0]), batch_of(2, "requeued"), ctx).sum.item() == 0
    assert given.loss_term(output([1.0]), batch_of(1, "task"), ctx) is None


def audited(given, *rows, folder):
    """The end of stage 3 with a request of stage 2, whose rows have these token losses; what is logged."""
    ctx = step_context()
    task = SimpleNamespace(recipe="r", folder=folder, gone=False)
    ctx.stage.index = 3
    ctx.data = SimpleNamespace(
        stages=[SimpleNamespace(index=2, forget=(task,))], forget_rows=lambda stage: steps.rows("t", 100)
    )
    asked = []
    ctx.forward_pass = lambda source: asked.append(source) or iter([(batch_of(len(rows)), output(*rows))])
    given.on_stage_end(ctx)
    assert not asked or len(asked[0]) == given.config.rows
    return ctx.logged


def test_what_came_back_is_queued_and_what_is_forgotten_again_is_not(tmp_path):
    """Half of a bound of 4: 1.9 is back, 2 is not."""
    given = made(target(spare=[1, 0]))
    logged = audited(given, [0.0, 1.9], folder=tmp_path)
    assert logged["optimistic_forget/queued"] == 1 and logged["optimistic_forget/stage-2"] == pytest.approx(1.9)
    assert given.state_dict()["targets"][0]["queued"] is True
    later = SimpleNamespace(
        stage=SimpleNamespace(index=4),
        stages=[SimpleNamespace(index=2, forget=(SimpleNamespace(recipe="r", folder=tmp_path, gone=False),))],
        forget_rows=lambda stage: steps.rows("t", stage.index),
    )
    assert len(given.streams(later)["requeued"].rows) == 2 and made(target()).streams(later) == {}
    assert made(target(queued=True), gamma=0).streams(later) == {}
    assert audited(given, [0.0, 2.0], folder=tmp_path)["optimistic_forget/queued"] == 0
    assert given.streams(later) == {}


def test_without_the_audit_nothing_is_looked_at(tmp_path):
    given = made(target(), audit=False)
    assert audited(given, [0.0], folder=tmp_path) == {} and given.state_dict()["targets"] == [target()]


def test_a_request_whose_data_were_deleted_is_counted_and_not_queued(tmp_path):
    given = made(target(queued=True, loss=1.0))
    logged = audited(given, [0.0], folder=tmp_path / "gone")
    assert logged == {"optimistic_forget/queued": 0.0, "optimistic_forget/gone": 1.0}
    assert given.state_dict()["targets"] == [target()]


def test_a_stage_that_forgets_notes_its_request():
    """Answers 5 1 9 and 5 2 9 beside 5 3 3 9 share their ends."""
    given, ctx = made(), step_context()
    ctx.stage.forget = ("x",)
    ctx.data.forget_rows = lambda: []
    parts = iter([answered("rows", [5, 1, 9], [5, 2, 9]), answered("task", [5, 3, 3, 9])])
    ctx.forward_pass = lambda source: iter([next(parts)])
    given.on_stage_start(ctx)
    assert given.state_dict() == {"targets": [target(spare=[1, 1])], "met": 0}
    ctx.stage.forget, ctx.forward_pass = (), None
    given.on_stage_start(ctx)
    assert len(given.state_dict()["targets"]) == 1


def test_state_goes_to_disk_and_back():
    state = {"targets": [target(queued=True, loss=1.5)], "met": 2}
    given = made()
    given.load_state_dict(json.loads(json.dumps(state)))
    assert given.state_dict() == state


def test_what_is_forgotten_anew_must_be_merged():
    keep, plan = stage(), SimpleNamespace(stages=[SimpleNamespace(forget=("x",)), None])
    keep.adapter.carry = "keep"
    (problem,) = made().check(keep, plan)
    assert "can be unloaded" in problem.what
    assert made(audit=False).check(keep, plan) == [] == made(gamma=0).check(keep, plan)
    assert made().check(keep, SimpleNamespace(stages=[SimpleNamespace(forget=()), None])) == []


def test_without_stop_and_audit_it_is_not_there(tmp_path):
    """Bit for bit the weights of its host."""
    own = {"name": "optimistic_forget", "stop": False, "audit": False}
    weights = []
    for name, methods in (("a", [NPO]), ("b", [NPO, own])):
        _, files = trained(tmp_path / name, *methods, stages=STAGES[1:])
        weights.append({k: v for k, v in tensors_of(files)["01-word-others"].items() if "optimistic" not in k})
    assert weights[0] == weights[1]


def test_a_killed_stage_ends_at_the_same_step(tmp_path):
    """The bound is reached at once: two of four steps, killed after the first of them."""
    methods = [NPO, {"name": "optimistic_forget", "bound": 0.1, "patience": 2}]
    plan = plan_of(stages=STAGES[1:], defaults={"methods": methods})
    whole = run_plan(plan, tmp_path / "whole")
    assert tensors_of(run_plan(plan, tmp_path / "killed", stop_at=(1, 1))) == tensors_of(whole)
    progress = json.loads((tmp_path / "killed" / plan.stages[0].folder / "progress.json").read_text())
    assert progress["ended"]["step"] == 2 and "optimistic_forget" in progress["ended"]["reason"]


def test_settings():
    assert OptimisticForget.Config() == shipped_config(OptimisticForget)
    for key, wrong in (("patience", 0), ("requeue", -0.1), ("rows", 0), ("gamma", -1), ("per_step", 0)):
        assert refused(OptimisticForget, **{key: wrong}) == [key]
