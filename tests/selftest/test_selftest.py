"""The runner of the self-test: which checks run, what a failing one leaves, and how ranks are put together."""

import time

import pytest

from mcit.core.errors import Interrupted, StateError
from mcit.selftest import checks, selftest
from mcit.selftest.checks import Finding
from mcit.selftest.selftest import Item, Outcome, died, items_for, not_run, outcome_of, result_of, run_items, summary


def outcome(**changes):
    return Outcome(
        **{"engine": "plain", "check": "window", "passed": True, "number": 1e-7, "what": "w", "seconds": 1.0} | changes
    )


def left(folder, *outcomes):
    """Outcomes of ranks 0, 1, … as their files."""
    for rank, found in enumerate(outcomes):
        selftest.write_json(folder / "outcomes" / f"plain-window-rank-{rank:03d}.json", selftest.asdict(found))


def test_which_checks_run():
    assert [i.engine for i in items_for(None, ranks=1)] == ["plain"] * 10
    assert list(dict.fromkeys(i.engine for i in items_for(None, ranks=2))) == ["plain", "zero1", "zero2", "zero3"]
    assert [i.check for i in items_for("zero3", ranks=2)] == list(selftest.CHECKS)
    assert set(selftest.CHECKS) == set(checks.CHECKS)


def test_an_error_fails_one_check_and_the_next_one_runs(tmp_path, monkeypatch):
    def breaks(kit):
        raise StateError("is gone", where="here")

    def counts(kit):
        return Finding(True, float("inf"), "w")

    monkeypatch.setitem(checks.CHECKS, "window", breaks)
    monkeypatch.setitem(checks.CHECKS, "penalty", counts)
    said = []
    items = [Item("plain", "window"), Item("plain", "penalty")]
    run_items(items, tmp_path, deadline=time.time() + 60, say=said.append)
    first, second = (outcome_of(item, tmp_path, ranks=1) for item in items)
    assert not first.passed and first.number is None and first.what == "StateError: here: is gone"
    assert second.passed and second.number == 1e308
    assert "plain window: FAILED" in said[0] and "plain penalty: passed" in said[1]


def test_a_check_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setitem(checks.CHECKS, "window", lambda kit: time.sleep(30))
    item = Item("plain", "window")
    begin = time.monotonic()
    run_items([item], tmp_path, deadline=time.time() + 60, check_s=2.0)
    assert time.monotonic() - begin < 20
    found = outcome_of(item, tmp_path, ranks=1)
    assert not found.passed and found.what.startswith("TooLong: not done after 2 s")


def test_nothing_starts_after_the_deadline(tmp_path):
    item = Item("plain", "window")
    run_items([item], tmp_path, deadline=time.time() - 1)
    assert outcome_of(item, tmp_path, ranks=1) is None
    late = not_run(item, limit=300)
    assert result_of(late) == "not run" and not summary([outcome(), late])["passed"]


def test_a_signal_stops_between_checks(tmp_path):
    with pytest.raises(Interrupted, match="stopped before window on plain"):
        run_items([Item("plain", "window")], tmp_path, deadline=time.time() + 60, stop=lambda: True)


def test_the_worst_rank_counts(tmp_path):
    item = Item("plain", "window")
    left(tmp_path, outcome(number=1e-7, seconds=1.0))
    assert outcome_of(item, tmp_path, ranks=2) is None, "rank 1 has not ended"
    left(tmp_path, outcome(number=1e-7, seconds=1.0), outcome(number=1e-6, seconds=2.0))
    assert outcome_of(item, tmp_path, ranks=2) == outcome(number=1e-6, seconds=2.0)
    left(tmp_path, outcome(number=9.0), outcome(passed=False, number=None, what="KeyError: x"))
    found = outcome_of(item, tmp_path, ranks=2)
    assert not found.passed and found.number is None and found.what == "rank 1: KeyError: x"
    assert died(item, tmp_path, error="killed\nby hand").what == "killed by hand"


def test_ranks_go_on_together_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(selftest, "_MEET_S", 0.2)
    item, bad = Item("plain", "window"), outcome(passed=False, number=None, what="KeyError: x")
    left(tmp_path, bad, bad)
    assert selftest._met(item, bad, tmp_path, 2)
    left(tmp_path, bad, outcome())
    assert not selftest._met(item, bad, tmp_path, 2)
    assert not selftest._met(item, bad, tmp_path, 3), "rank 2 has not ended"


def test_the_summary_adds_up_by_engine():
    found = summary([outcome(seconds=1.5), outcome(check="export", seconds=2.0), outcome(engine="zero2")])
    assert found["passed"] and found["seconds"] == {"plain": 3.5, "zero2": 1.0} and len(found["checks"]) == 3
    assert not summary([])["passed"] and not summary([outcome(passed=False)])["passed"]
