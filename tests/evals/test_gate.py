"""Verdicts by the conservative bound, and alarms inside a stage."""

import pytest

from mcit.evals.gate import alarm, judged, measured, overall, threshold_tasks, verdict
from mcit.evals.slices import Measure, drops, share
from tests.fakes.score_run import FakeRun

SLICES = {"tasks": ["new"], "rephrased": [], "neighbourhood": ["near"], "retention": ["old"]}


def limit(metric, **given):
    return {"metric": metric, "task": None, "unit": "share", "at_least": None, "at_most": None, "first": False, **given}


def test_57_of_60_unchanged_is_inconclusive_at_95_percent():
    found = share(57, 60)
    near = limit("locality", at_least=0.95)
    assert judged(near, found)["verdict"] == "inconclusive" and found.interval[0] == pytest.approx(0.863, abs=5e-4)
    assert judged({**near, "at_least": 0.86}, found)["verdict"] == "pass"
    assert judged({**near, "at_least": 0.96}, found)["verdict"] == "fail"
    assert judged(near, None) | {"verdict": "not measured", "n": 0, "estimate": None} == judged(near, None)


def test_the_unit_of_a_drop_decides():
    """0.620 to 0.612: 0.8 points and 1.29 % relative; of the estimates one passes at 1 and the other does not."""
    ids = [str(k) for k in range(1000)]
    points, relative = drops([1.0] * 620 + [0.0] * 380, [1.0] * 612 + [0.0] * 388, ids)
    drop = limit("drawdown", unit="points", at_most=1.0)
    assert verdict(drop, relative.estimate, [relative.estimate] * 2) == "fail"
    assert verdict(drop, points.estimate, [points.estimate] * 2) == "pass"
    assert verdict(drop, points.estimate, points.interval) == "inconclusive"  # its upper bound is above 1


def test_all_have_to_pass():
    assert overall([{"verdict": "pass"}, {"verdict": "pass"}]) == "pass"
    assert overall([{"verdict": "pass"}, {"verdict": "inconclusive"}]) == "inconclusive"
    assert overall([{"verdict": "not measured"}]) == "inconclusive" and overall([]) == "inconclusive"
    assert overall([{"verdict": "fail"}, {"verdict": "inconclusive"}]) == "fail"


def test_measures_in_the_units_of_thresholds(tmp_path):
    run = FakeRun(tmp_path / "run", [["old"], ["new"]])
    run.shares(1, "old", 8).shares(2, "old", 6).shares(2, "new", 9).shares(1, "near", 4).shares(2, "near", 4)
    before, after = run.root / "evals" / "after-01", run.root / "evals" / "after-02"

    def of(*threshold, **given):
        return measured(limit(*threshold, **given), SLICES, before, after, mode="strict")

    assert of("success").estimate == 0.9 and of("success", unit="percent").estimate == pytest.approx(90)
    assert of("locality").estimate == 1.0 and of("accuracy", task="old").estimate == 0.6
    assert of("format_validity", task="old", unit="percent").estimate == 100
    assert of("drawdown", unit="points").estimate == pytest.approx(20)
    assert of("drawdown", unit="relative").estimate == pytest.approx(25)
    assert of("generalisation") is None and of("format_validity", task="gone") is None
    assert isinstance(of("success"), Measure) and threshold_tasks(limit("accuracy", task="x"), SLICES) == ["x"]


def line(**accuracy):
    return {"values": {"tasks": {task: {"accuracy": value} for task, value in accuracy.items()}}}


def test_alarms():
    """Task a is an earlier one: 0.8 before the first update, then 0.5 and 0.6; new is in training."""
    lines = [line(a=0.8, new=0.0), line(a=0.5, new=0.1), {"left_out": "no time"}, line(a=0.6, new=0.2)]
    current = frozenset({"new"})
    lowest = limit("min_acc", at_least=0.55)
    assert alarm([lowest], lines, current) == "gate: min_acc is 0.500, the limit is 0.55 share"
    assert alarm([{**lowest, "unit": "percent", "at_least": 50}], lines, current) == ""
    drop = limit("drawdown", unit="points", at_most=19)
    assert alarm([drop], lines, current) == "gate: drawdown is 20.000, the limit is 19 points"
    assert alarm([{**drop, "unit": "relative", "at_most": 25.1}], lines, current) == ""
    assert alarm([lowest], lines[:1], current) == "" and alarm([lowest], lines, frozenset({"a", "new"})) == ""
