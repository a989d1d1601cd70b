"""Who is evicted, who is looked at again, and what a step reads: by hand."""

import dataclasses
import json
import random
from types import SimpleNamespace

import torch

from mcit.methods.optimistic_replay import OptimisticReplay, satisfied, some
from tests.fakes.forgetting import batch_of, output
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import context, rows

ROWS = rows("a", 4)
KEYS = [f"a/a{k}" for k in range(4)]


DATA = SimpleNamespace(rows=lambda task: ROWS, without_forgotten=lambda kept, known=(): kept)


def made(**settings):
    """A method that keeps the four rows, with its stream open."""
    given = OptimisticReplay(OptimisticReplay.Config(**settings))
    given.load_state_dict({"kept": [["a", [row.id for row in ROWS]]], "satisfied": {}})
    given.streams(DATA)
    return given


def stepped(given, losses, *, step=0):
    """One step over the rows of these numbers with these losses; what it logs."""
    ctx = context()
    ctx.step, ctx.all_sum = step, lambda tensor: tensor
    for place, loss in losses:
        batch = dataclasses.replace(batch_of(1, "replay"), rows=(ROWS[place],))
        given.loss_term(output([loss, loss]), batch, ctx)
    given.after_step(ctx)
    return ctx.logged


def places(given, step, size=4):
    ctx = context()
    ctx.step = step
    return [row for row, view in given.choose("replay", 4, size, ctx) if view == 0]


def test_three_satisfied_probes_evict_and_an_audit_readmits():
    """Losses .1, .1, .1 under .2 with a patience of 3; an audit of .5."""
    counts = [0]
    for loss in (0.1, 0.1, 0.1, 0.5):
        counts.append(satisfied(counts[-1], loss, 0.2))
    assert counts == [0, 1, 2, 3, 0] and satisfied(2, 0.2, 0.2) == 0
    given = made()
    for _ in range(2):
        assert stepped(given, [(1, 0.1), (2, 0.5)])["optimistic_replay/evicted"] == 0
    assert stepped(given, [(1, 0.1)])["optimistic_replay/evicted"] == 1
    assert stepped(given, [(1, 0.1)])["optimistic_replay/readmitted"] == 0
    logged = stepped(given, [(1, 0.5)])
    assert logged["optimistic_replay/evicted"] == 0 and logged["optimistic_replay/readmitted"] == 1


def test_a_failed_probe_begins_anew():
    given = made()
    for loss in (0.1, 0.1, 0.3, 0.1, 0.1):
        stepped(given, [(0, loss)])
    assert given.state_dict()["satisfied"] == {"a/a0": 2}


def test_a_row_that_comes_twice_is_one_probe_and_one_without_answer_is_none():
    given = made()
    stepped(given, [(0, 0.1), (0, 0.5), (1, 0.1)])
    assert given.state_dict()["satisfied"] == {"a/a0": 0, "a/a1": 1}
    ctx = context()
    ctx.all_sum = lambda tensor: tensor
    out = dataclasses.replace(output([0.1]), row_N=torch.tensor([1]))
    batch = dataclasses.replace(batch_of(2, "replay"), rows=(ROWS[2], ROWS[3]))
    given.loss_term(out, batch, ctx)
    given.after_step(ctx)
    assert "a/a2" not in given.state_dict()["satisfied"] and given.state_dict()["satisfied"]["a/a3"] == 1


def test_a_second_pass_of_a_step_is_no_second_probe():
    given, ctx = made(), context(again=True)
    given.loss_term(output([0.1]), dataclasses.replace(batch_of(1, "replay"), rows=(ROWS[0],)), ctx)
    given.after_step(ctx)
    assert given.state_dict()["satisfied"] == {}


def evicted(**settings):
    """Rows 1 and 2 are evicted."""
    given = made(**settings)
    given.load_state_dict({**given.state_dict(), "satisfied": {"a/a1": 3, "a/a2": 9, "a/a3": 2}})
    return given


def test_places_go_to_the_others_and_a_share_to_audits():
    every = [places(evicted(audit=0.25), step) for step in range(400)]
    audits = [sum(place in (1, 2) for place in step) for step in every]
    assert 0.22 < sum(audits) / 1600 < 0.28 and {0, 1, 2} <= set(audits)
    assert all({0, 3} & set(step) for step in every)
    assert {place for step in every for place in step} == {0, 1, 2, 3}
    assert places(evicted(audit=0.25), 7) == every[7] and len({tuple(step) for step in every}) > 10
    assert all(sorted(places(made(), step)) == [0, 1, 2, 3] for step in range(5)), "none evicted: none twice"


def test_without_audits_nothing_comes_back():
    given = evicted(audit=0)
    assert all(set(places(given, step)) == {0, 3} for step in range(50))
    given.load_state_dict({**given.state_dict(), "satisfied": dict.fromkeys(KEYS, 3)})
    assert sorted(places(given, 0)) == [0, 1, 2, 3], "a step has its rows all the same"
    term = given.loss_term(output([5.0]), dataclasses.replace(batch_of(1, "replay"), rows=(ROWS[0],)), context())
    assert term.sum.item() == 0
    assert stepped(given, [(0, 5.0)]) == {} and given.state_dict()["satisfied"] == dict.fromkeys(KEYS, 3)


def test_with_audits_a_memory_of_evicted_rows_is_looked_at_whole():
    given = evicted()
    given.load_state_dict({**given.state_dict(), "satisfied": dict.fromkeys(KEYS, 3)})
    assert sorted(places(given, 0)) == [0, 1, 2, 3]
    assert stepped(given, [(0, 5.0)])["optimistic_replay/readmitted"] == 1


def test_a_threshold_of_zero_evicts_nothing_and_a_weight_of_zero_opens_nothing():
    given = made(threshold=0)
    for _ in range(5):
        stepped(given, [(0, 0.0)])
    assert given.state_dict()["satisfied"] == {"a/a0": 0}
    off = OptimisticReplay(OptimisticReplay.Config(weight=0))
    off.load_state_dict(given.state_dict())
    assert off.streams(DATA) == {}


def test_what_was_evicted_stays_so_in_a_later_stage():
    state = json.loads(json.dumps(evicted().state_dict()))
    later = OptimisticReplay(OptimisticReplay.Config(audit=0))
    later.load_state_dict(state)
    later.streams(DATA)
    assert later.state_dict() == state and set(places(later, 3)) == {0, 3}


def test_of_rows_that_a_stage_forgot_nothing_stays():
    """So that their data can be deleted: neither their ids nor what is known of them."""
    given = made()
    stepped(given, [(k, 0.1) for k in range(4)])
    assert sorted(given.state_dict()["satisfied"]) == KEYS
    ctx = context()
    left = SimpleNamespace(folder="02-b", forget=("f",))
    ctx.data = SimpleNamespace(
        stages=[left], rows=DATA.rows, without_forgotten=lambda kept, known=(): kept[:3], stage_rows=lambda: []
    )
    given.on_stage_end(ctx)
    state = given.state_dict()
    assert sorted(state["satisfied"]) == KEYS[:3] and "a3" not in json.dumps(state)


def test_none_is_drawn_twice_before_all_came():
    drawn = some(random.Random(1), [4, 5, 6], 7)
    assert (
        sorted(drawn[:3]) == sorted(drawn[3:6]) == [4, 5, 6] and len(drawn) == 7 and some(random.Random(1), [], 0) == []
    )


def test_settings():
    assert OptimisticReplay.Config() == shipped_config(OptimisticReplay)
    for key, wrong in (("threshold", -0.1), ("patience", 0), ("audit", 1.1), ("audit", -0.1)):
        assert refused(OptimisticReplay, **{key: wrong}) == [key]
