"""Attacks: on a copy, with the rows they say, against controls, and nothing of them in the run."""

from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import ConfigError
from mcit.core.files import sha256_file
from mcit.core.interfaces import Silent
from mcit.core.schema import BaseConfig, EvalConfig
from mcit.evals.unlearning import robustness
from mcit.plan.plan import make_plan, parse_run
from mcit.runs.run import open_existing
from mcit.train.attack import Attack, Subject, _area, _Attacks, attack, attack_problems, attack_rows
from mcit.train.sequence import Session


@pytest.fixture(scope="module")
def session(forgetful, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        run = open_existing(forgetful)
        yield Session(make_plan(parse_run(run.config())[0]), run, Silent())


def test_relearning_trains_a_copy_and_leaves_model_and_stages_alone(session, forgetful):
    stage = session.plan.stages[1]
    stages = {p: sha256_file(p) for p in (forgetful / "stages").rglob("*") if p.is_file()}
    before = {n: t.clone() for n, t in session.model_after(2).state_dict().items()}
    what = Attack("relearn", rows=(8, 16, 99), rank=4, lr=2e-2, epochs=2)
    controls = [Subject(session, 0, "base")]
    record = attack(session, stage, what, controls=controls, reporter=Silent())
    after = session.model_after(2).state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert stages == {p: sha256_file(p) for p in (forgetful / "stages").rglob("*") if p.is_file()}
    assert [entry["rows"] for entry in record["results"]] == [8, 16, 39]
    assert record["results"][-1]["accuracy"] == 100.0, "39 of 39 red rows, two epochs, bring red back"
    assert [entry["rows"] for entry in record["controls"]["base"]] == [0, 8, 16, 39]
    for entry in record["results"]:
        assert entry["robustness"] == robustness(record["before"], record["forgotten"], entry["accuracy"])
    session.model_after = lambda after: pytest.fail("answers are there: no model is needed again")
    try:
        assert attack(session, stage, what, controls=controls, reporter=Silent()) == record
    finally:
        del session.model_after


def test_rows_of_each_kind(session):
    plan, stage = session.plan, session.plan.stages[1]
    relearn, near, benign = (attack_rows(plan, stage, kind) for kind in ("relearn", "neighbour", "benign"))
    assert {r.answer for r in relearn} == {"red"} and "red" not in {r.answer for r in near}
    assert {r.task for r in benign} == {"letter"} and attack_rows(plan, stage, "relearn") == relearn
    asked = {r.question for r in relearn}
    same = [r.question in asked for r in near]
    assert same == sorted(same, reverse=True) and same[0]


def test_nothing_to_unload_after_a_merge(session):
    record = attack(session, session.plan.stages[1], Attack("unload"), reporter=Silent())
    assert not record["possible"] and record["results"][0]["accuracy"] == record["forgotten"]


def test_other_rows_are_another_attack(session, monkeypatch):
    """As after a run was extended: its next stage gives the rows of ``benign``, where before an earlier one did."""
    stage, what, used, own = session.plan.stages[1], Attack("benign", rows=(4,), rank=2), [], session.model_after
    attack(session, stage, what, reporter=Silent())
    monkeypatch.setattr(session, "model_after", lambda after: used.append(after) or own(after))
    attack(session, stage, what, reporter=Silent())
    assert not used
    rows = attack_rows(session.plan, stage, "neighbour")
    monkeypatch.setattr("mcit.train.attack.attack_rows", lambda *_: rows)
    attack(session, stage, what, reporter=Silent())
    assert used == [2]


@pytest.mark.parametrize(
    ("filters", "carry", "expected", "scored"),
    [
        (["strip"], "merge", (False, 30.0), []),
        (["strip"], "keep", (True, 80.0), []),
        (["strip", {"use": "guard"}], "merge", (True, 55.0), [(2, ["strip"])]),
        (["guard"], "keep", (True, 55.0), [(1, [])]),
    ],
)
def test_what_can_be_taken_off(monkeypatch, filters, carry, expected, scored):
    """Filters that apply what a method left, and an adapter that was not merged, together; others stay."""
    calls = []

    def score(self, subject, name, config, make, rows=()):
        calls.append((subject.after, config.filters))
        return 55.0

    monkeypatch.setattr(_Attacks, "_score", score)
    session = SimpleNamespace(plan=SimpleNamespace(config=SimpleNamespace(eval=EvalConfig(filters=filters))))
    stage = SimpleNamespace(index=2, adapter=SimpleNamespace(carry=carry))
    found = _Attacks(session, stage, Attack("unload"), Silent(), bool).unloaded(30.0, 80.0)
    assert found == expected and calls == scored


def test_refused(session):
    plan = session.plan
    with pytest.raises(ConfigError, match="forgets nothing"):
        attack_problems(plan, plan.stages[0])
    quantised = plan.config.model_copy(update={"base": BaseConfig(family="tiny", dtype="nf4")})
    with pytest.raises(ConfigError, match="quantised"):
        attack_problems(type(plan)(**{**vars(plan), "config": quantised}), plan.stages[1])


def test_area_by_hand():
    """UE 74, 70 at 20, 50 at 40: (20 * 72 + 20 * 60) / 40 = 66."""
    assert _area(26, [{"rows": 20, "accuracy": 30}, {"rows": 40, "accuracy": 50}]) == pytest.approx(66.0)
    assert _area(None, [{"rows": 20, "accuracy": 30}]) is None
