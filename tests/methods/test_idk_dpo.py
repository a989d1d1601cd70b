"""IdkDPO and AltPO: the loss of pairs, how pairs stay together, whose answers they are."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import PlanError
from mcit.methods.formulas.refusals import REFUSALS
from mcit.methods.idk_dpo import IdkDPO
from tests.fakes import steps
from tests.fakes.bench import plan_of, tensors_of
from tests.fakes.forgetting import STAGES, batch_of, output, step_context, trained
from tests.fakes.settings import shipped_config


def method(**settings):
    return IdkDPO(IdkDPO.Config(**settings))


def loss(given, *pairs):
    """Pairs of summed losses (l, w) as rows of one token each."""
    out = output(*[[value] for pair in pairs for value in pair])
    out = dataclasses.replace(out, real_rows=tuple(range(2 * len(pairs))))
    batch = batch_of(2 * len(pairs), "pair")
    rows = tuple(dataclasses.replace(row, id=str(i // 2)) for i, row in enumerate(batch.rows))
    batch = dataclasses.replace(batch, rows=rows, views=(0, 1) * len(pairs))
    term = given.loss_term(out, batch, step_context())
    assert term.per == "rows"
    return term.sum.item() / len(rows)


def test_oracles():
    """At the reference 2 ln 2 / .1 = 13.8629; w 8 (ref 10), l 12 (ref 4): argument 1.0, 6.26523; a mean over pairs."""
    given = method()
    given.load_state_dict({"reference": {"t/0": 4.0, "t/1": 3.0}, "winners": {"t/0": 10.0, "t/1": 7.0}})
    assert loss(given, (4.0, 10.0)) == pytest.approx(13.8629, abs=1e-4)
    assert loss(given, (12.0, 8.0)) == pytest.approx(6.26523, abs=1e-5)
    assert loss(given, (12.0, 8.0), (3.0, 7.0)) == pytest.approx((6.26523 + 13.8629) / 2, abs=1e-4)


def test_pairs_stay_together_and_every_row_comes_once_in_two_epochs():
    given = method()
    for count in (4, 5):
        draws = [draw for epoch in range(4) for draw in given.order("pair", epoch, count, 3)]
        assert [view for _, view in draws] == [0, 1] * (2 * count)
        firsts = [row for row, view in draws if view == 0]
        assert [row for row, view in draws if view == 1] == firsts
        assert (
            sorted(firsts[:count]) == sorted(firsts[count:]) == list(range(count)) and firsts[:count] != firsts[count:]
        )


def test_winners_are_refusals_or_the_rows_alternates():
    rows = steps.rows("t", 3)
    others = [dataclasses.replace(r, turns=(r.turns[0], dataclasses.replace(r.turns[1], text="owl"))) for r in rows]
    ctx = SimpleNamespace(forget_rows=lambda: rows, alternate_rows=lambda: others, seed=1)
    for settings, said in (({}, set(REFUSALS)), ({"winner": "alternate"}, {"owl"})):
        given = method(**settings)
        spec = given.streams(ctx)["pair"]
        shown = [given.on_row(row, 1, 0) for row in spec.rows]
        assert (
            spec.per_step == 8 and {row.answer for row in shown} <= said and {row.answer for row in spec.rows} == {"a"}
        )
        assert [row.id for row in shown] == [row.id for row in rows]


def test_the_stage_trains_on_alternates_and_resumes(tmp_path):
    stage = {**STAGES[1], "alternate": "tiny/word-alternate"}
    runs = [
        trained(tmp_path / str(stop), {"use": "alt_po", "per_step": 2}, stages=[stage], max_steps=2, stop_at=stop)[1]
        for stop in (None, (1, 1))
    ]
    assert tensors_of(runs[0]) == tensors_of(runs[1])
    with pytest.raises(PlanError, match=r"idk_dpo\): shapes-word\[train\].*no alternate answer"):
        plan_of(stages=STAGES[1:], defaults={"methods": [{"use": "alt_po"}]})


def test_state_and_settings():
    assert method().claims.groups == {"pair": 2} and method().claims.slots == {"order:pair"}
    assert shipped_config(IdkDPO) == IdkDPO.Config()
    assert torch.tensor(loss(method(), (0.0, 0.0))).isfinite()
