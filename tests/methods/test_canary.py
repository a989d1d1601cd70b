"""Canaries: exact exposures, weight of a token, what is refused, and that no replay pool holds them."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mcit.core.canaries import Planting
from mcit.core.errors import PlanError
from mcit.core.interfaces import Silent
from mcit.core.types import Counts
from mcit.methods.canary import Canary, shown
from mcit.train.loop import train_stage
from mcit.train.stage import build_stage
from tests.fakes.bench import Draft, plan_of
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import batch, context, output
from tests.train.test_stage import material

METHOD = {"name": "canary", "rows": 7, "exposures": [1, 2, 3]}


def test_rows_come_exactly_as_often_as_asked_and_all_in_the_last_round():
    planting = Planting(None, "c", 0, 7, (1, 2, 3))
    places = shown(planting, seed=5)
    assert Counter(places) == {0: 1, 1: 2, 2: 3, 3: 1, 4: 2, 5: 3, 6: 1}
    assert sorted(places[-7:]) == list(range(7)) and sorted(places[:2]) == [2, 5]
    assert shown(planting, seed=5) == places != shown(planting, seed=6)


def test_a_token_weighs_as_one_of_the_task():
    """2 tokens of a canary beside 8 of the task: their sum over 8, by way of a mean over 2."""
    ctx = context()
    ctx.counts = Counts({"task": 8, "canary": 2}, {})
    method = Canary(Canary.Config(weight=0.5))
    term = method.loss_term(output(torch.zeros(2, 4), [0, 1]), batch("canary"), ctx)
    assert term.sum.item() / 2 == pytest.approx(0.5 * 2 * 1.3862943611 / 8) and term.per == "tokens"
    assert method.loss_term(output(torch.zeros(2, 4), [0, 1]), batch("task"), ctx) is None
    assert Canary(Canary.Config(weight=0)).streams(SimpleNamespace(stage=SimpleNamespace(steps=3))) == {}
    assert method.order("canary", 0, 3, 1) == [(0, 0), (1, 0), (2, 0)]


def test_exposures_in_a_stage_are_exact_and_replay_keeps_none(tmp_path):
    """Counted where the model sees them; 7 rows with 1, 2, 3 exposures in turn are 13 draws over 4 steps."""
    plan = plan_of(stages=[{"recipe": "tiny/letter"}], defaults={"methods": [METHOD, {"name": "replay", "keep": 500}]})
    work = build_stage(plan.stages[0], material(plan), inherited={})
    seen, forward = Counter(), work.engine.forward

    def counting(batch, needs=frozenset()):
        if batch.stream == "canary" and torch.is_grad_enabled() and work.ctx.phase == "step":
            seen.update(batch.row_ids)
        return forward(batch, needs)

    work.engine.forward = counting
    train_stage(work, Draft(tmp_path), reporter=Silent())
    assert [seen[f"canary-{k}"] for k in range(7)] == [1, 2, 3, 1, 2, 3, 1] and len(seen) == 7
    kept = {i for _, ids in work.methods.methods[1].state_dict()["kept"] for i in ids}
    assert kept and not any(i.startswith("canary") for i in kept)


def test_what_is_refused():
    with pytest.raises(PlanError, match=r"canary/codes has 512 rows, the stages so far plant 600"):
        plan_of(defaults={"methods": [{**METHOD, "rows": 300}]})
    with pytest.raises(PlanError, match=r"stages\[0\] trains on canary/codes besides"):
        plan_of(stages=[{"recipe": ["tiny/letter", "canary/codes"], "name": "x", "methods": [METHOD]}])
    with pytest.raises(PlanError, match=r"stages\[1\] trains on canary/codes besides"):
        other = {"recipe": "tiny/yesno", "methods": [{"name": "frequency_replay", "visits": {"canary/codes": 1}}]}
        plan_of(stages=[{"recipe": "tiny/letter", "methods": [METHOD]}, other])
    with pytest.raises(PlanError, match="shown at least once"):
        plan_of(defaults={"methods": [{**METHOD, "exposures": [0]}]})


def test_naming_it_alone_is_using_the_shipped_settings():
    assert Canary.Config() == shipped_config(Canary)
    assert refused(Canary, rows=0, exposures=[]) == ["rows", "exposures"]
