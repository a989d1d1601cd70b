"""Which rows a forget stage is measured on, when, and under which gold model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mcit.cli.main import main
from mcit.core.errors import PlanError, StateError
from mcit.core.ranks import ONE
from mcit.core.schema import KitConfig
from mcit.data.overlap import pictures_of
from mcit.evals.kit import room
from mcit.plan.forgetting import kit_problems
from mcit.plan.plan import make_plan, parse_run
from mcit.runs.layout import RunLayout
from mcit.runs.run import Run
from mcit.train import kit
from mcit.train.kit import gold_after, gold_reached, kit_due, sets_of
from tests.fakes.forgetful import CONFIG, write_config


@pytest.fixture(scope="module")
def plan(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        return make_plan(parse_run(CONFIG)[0])


def test_rows_are_drawn_once_and_hold_nothing_twice(plan):
    stage, config = plan.stages[1], KitConfig(rows=12)
    found = sets_of(plan, stage, config)
    assert found == sets_of(plan, stage, config) and len(found.forget) == 12
    assert {row.answer for row in found.forget} == {"red"} and "red" in found.pool and len(found.pool) > 2
    trained = {pictures_of(row) for row in found.forget}
    assert not trained & {pictures_of(row) for row in found.holdout} and len(found.holdout) == 8
    asked = {row.question for row in found.forget}
    assert all(row.question in asked and row.answer != "red" for row in found.near["same_question"])
    assert list(found.tasks) == ["word-others"]


def test_answers_have_room_for_a_refusal_and_for_the_longest_answer_of_the_rows_asked(plan):
    stage, config = plan.stages[1], KitConfig(rows=12)
    assert stage.forget[0].max_new_tokens == 4
    longer = replace(stage, tasks=tuple(replace(task, max_new_tokens=50) for task in stage.tasks))
    stages = (replace(plan.stages[0], tasks=longer.tasks), longer, plan.stages[2])
    found = sets_of(replace(plan, stages=stages), longer, config)
    assert room(found, found.forget) == 32 and room(found, found.near["retained"]) == 50
    told = plan.config.eval.model_copy(update={"max_new_tokens": 70})
    found = sets_of(replace(plan, config=plan.config.model_copy(update={"eval": told})), stage, config)
    assert room(found, found.forget) == 70


def test_due_before_after_and_ever_after_and_with_the_base_for_the_reference(plan):
    config = KitConfig()
    assert [len(kit_due(plan, k, config)) for k in range(4)] == [1, 1, 1, 1]
    assert [len(kit_due(plan, k, KitConfig(membership=[]))) for k in range(4)] == [0, 1, 1, 1]


def test_the_gold_runs_stage_is_found_by_name(plan):
    assert gold_after(plan, ["word", "forget-red", "letter"], plan.stages[1]) == 2
    assert gold_after(plan, ["word", "letter"], plan.stages[1]) == 1
    assert gold_after(plan, ["letter"], plan.stages[1]) == 0


def test_a_gold_run_that_has_not_come_so_far_is_finished_first(plan, monkeypatch):
    gold = SimpleNamespace(plan=plan, run=SimpleNamespace(ranks=ONE, layout=SimpleNamespace(root="runs/a gold run")))
    monkeypatch.setattr(kit, "done_stages", lambda run: [1, 2])
    assert gold_reached(plan, gold, plan.stages[1]) == 2
    monkeypatch.setattr(kit, "done_stages", lambda run: [1])
    with pytest.raises(StateError, match="has not come to stage 2 yet") as caught:
        gold_reached(plan, gold, plan.stages[1])
    assert caught.value.problems[0].fix == "finish it with: mcit resume 'runs/a gold run'"


def test_no_holdout_no_stage_no_libraries_and_a_pool_are_refused(plan, monkeypatch):
    bare = replace(plan.stages[1].forget[0], rows={"train": 5, "test": 0})
    without = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], forget=(bare,)), plan.stages[2]))
    (problem,) = kit_problems(without, KitConfig())
    assert "never trained" in problem.what and "holdout" in problem.where and "membership: []" in problem.fix
    assert not kit_problems(without, KitConfig(membership=[])) and not kit_problems(plan, KitConfig())
    (problem,) = kit_problems(replace(plan, stages=plan.stages[:1]), KitConfig())
    assert "no stage forgets" in problem.what
    (problem,) = kit_problems(replace(plan, router=SimpleNamespace()), KitConfig())
    assert "pool" in problem.what
    monkeypatch.setitem(__import__("sys").modules, "rouge_score", None)
    assert "mcit[forgetting]" in kit_problems(plan, KitConfig())[0].fix
    config = {**CONFIG, "stages": CONFIG["stages"][:1]}
    with pytest.raises(PlanError, match="no stage forgets anything"):
        make_plan(parse_run(config)[0])


def test_the_model_is_asked_as_the_config_says(plan, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(kit, "measure", lambda subject, *args, **kwargs: asked.append(subject.sharing))
    monkeypatch.setattr("mcit.train.sequence.left_state", lambda *args: {})
    monkeypatch.setattr(kit, "sets_of", lambda *args: sets_of(plan, plan.stages[1], KitConfig(rows=2)))
    for share in ("auto", "off"):
        changed = plan.config.eval.model_copy(update={"share_prefix": share, "tokens": 7, "filters": []})
        one = replace(plan, config=plan.config.model_copy(update={"eval": changed}))
        session = SimpleNamespace(
            plan=one, run=SimpleNamespace(ranks=ONE, layout=RunLayout(tmp_path)), encoder=None, device=torch.device("cpu"),
            lineage=lambda after: SimpleNamespace(digest=""), model_after=lambda after: None,
        )  # fmt: skip
        kit._measured(session, session, 1, plan.stages[1], KitConfig(), tmp_path, {}, stop=lambda: False)
    assert asked == [{"tokens": 7, "share": True}, {"tokens": 7, "share": False}]


def test_a_branch_takes_over_what_was_measured_of_the_stages_it_shares(forgetful, tmp_path):
    """Of the base and of the stage before the request, byte for byte; not where other rows are to be measured."""

    def branch(name, *more):
        given = [part for one in [f"name={name}", "stages.1.max_steps=1", *more] for part in ("--set", one)]
        where = ["--runs-dir", str(tmp_path), "--from", str(forgetful), "--stage", "1"]
        assert main(["run", str(write_config(tmp_path, stages=CONFIG["stages"][:2])), *where, *given]) == 0
        (root,) = tmp_path.glob(f"{name}-*")
        return root, {line["after"]: line.get("shared", False) for line in Run(root).ledger.events("kit")}

    root, told = branch("branch")
    assert told == {0: True, 1: True, 2: False}
    for after in ("base", "after-01"):
        mine, other = (r / "kit" / after / "02-forget-red" for r in (root, forgetful))
        files = [p.relative_to(other) for p in sorted(other.rglob("*")) if p.is_file()]
        assert len(files) > 10 and all((mine / p).read_bytes() == (other / p).read_bytes() for p in files)
    assert set(branch("fewer", "eval.kit.rows=3")[1].values()) == {False}
