"""Measures of a stage on its slices, from score folders."""

import pytest

from mcit.core.errors import StateError
from mcit.evals.slices import Measure, drops, locality, share, slice_report
from tests.fakes.score_run import FakeRun

IDS = [str(k) for k in range(1000)]
STAGE = {"tasks": ["new"], "rephrased": ["other-words"], "neighbourhood": ["near"], "retention": ["old", "older"]}


def test_the_unit_of_a_drop_matters():
    """0.620 to 0.612 of 1000 rows: 0.8 points, 1.29 % relative."""
    before, after = [1.0] * 620 + [0.0] * 380, [1.0] * 612 + [0.0] * 388
    points, relative = drops(before, after, IDS)
    assert points.estimate == pytest.approx(0.8) and relative.estimate == pytest.approx(1.290, abs=1e-3)
    assert points.estimate <= 1 < relative.estimate
    assert points.interval[0] < 0.8 < points.interval[1]
    assert drops([0.0] * 10, [0.0] * 10, IDS[:10])[1] is None


def test_a_share_with_its_interval():
    found = share(57, 60)
    assert found.estimate == 0.95 and found.interval[0] == pytest.approx(0.863, abs=5e-4) and found.n == 60


def test_a_stage(tmp_path):
    """Target 8 of 10, in other words 5; 3 of 10 near answers changed; old lost 6, older nothing."""
    run = FakeRun(tmp_path / "run", [["old"], ["older"], ["new"]])
    run.shares(3, "new", 8).shares(3, "other-words", 5)
    run.shares(2, "near", 9).shares(3, "near", 6).shares(2, "old", 8).shares(3, "old", 2).shares(2, "older", 5).shares(
        3, "older", 5
    )
    evals = run.root / "evals"
    found = slice_report(evals / "after-02", evals / "after-03", STAGE, mode="strict")
    assert (found.success.estimate, found.generalisation.estimate, found.locality.estimate) == (0.8, 0.5, 0.7)
    assert found.drawdown_points.estimate == pytest.approx(30) and found.drawdown_points.n == 20
    assert found.drawdown_relative.estimate == pytest.approx(100 * 6 / 13)
    old, older = found.retention
    assert (old["before"], old["after"]) == (80, 20) and old["p"] < 0.05 <= old["p_holm"] == pytest.approx(2 * old["p"])
    assert older["p"] == older["p_holm"] == 1.0
    assert found.json()["success"] == {"estimate": 0.8, "interval": found.success.interval, "n": 10}


def test_what_was_not_measured_is_none(tmp_path):
    run = FakeRun(tmp_path / "run", [["old"], ["new"]])
    run.shares(2, "new", 8).shares(1, "near", 5).shares(2, "near", 5, n=8)
    evals = run.root / "evals"
    empty = {**STAGE, "rephrased": [], "retention": []}
    found = slice_report(evals / "after-01", evals / "after-02", empty, mode="strict")
    assert isinstance(found.success, Measure) and found.generalisation is found.drawdown_points is None
    assert found.locality is None  # other rows
    assert slice_report(tmp_path, tmp_path, STAGE, mode="strict").json() == {
        **dict.fromkeys(("success", "generalisation", "locality", "drawdown_points", "drawdown_relative")), "retention": [],
    }  # fmt: skip
    assert locality(tmp_path, tmp_path, []) is None
    (evals / "after-02" / "new" / "rows.json").write_text("{}")
    with pytest.raises(StateError, match="its checksum differs"):
        slice_report(evals / "after-01", evals / "after-02", empty, mode="strict")
