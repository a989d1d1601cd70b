import pytest

from mcit.core.errors import StateError
from mcit.core.stored import write_sealed
from mcit.report.sweep import markdown, read_sweep, runs_csv, summary, write_sweep
from mcit.runs.layout import SWEEP
from tests.fakes.score_run import FakeRun

RIGHT = {"one": (4, 2, 3), "two": (2, 1, 4), "three": (4, 4, 2)}
"""Right answers of four: task a after stage 1 and 2, task b after stage 2."""


def answers(right):
    return ["cat"] * right + ["dog"] * (4 - right)


@pytest.fixture
def sweep(tmp_path):
    for name, (first, later, new) in RIGHT.items():
        run = FakeRun(tmp_path / name, [["a"], ["b"]])
        run.score(1, "a", answers(first))
        run.score(2, "a", answers(later))
        run.score(2, "b", answers(new))
    entries = [
        {"order": ["a", "b"], "seed": 1, "run": "one"},
        {"order": ["a", "b"], "seed": 2, "run": "two"},
        {"order": ["b", "a"], "seed": 1, "run": "three"},
    ]
    write_sealed(tmp_path / "sweep" / SWEEP, {"name": "toy", "runs": entries})
    return tmp_path / "sweep"


def test_means_and_standard_deviations_by_hand(sweep):
    """Last accuracies of a: 50, 25, 100: mean 58.33, deviations -8.33, -33.33, 41.67, so sd = sqrt(2916.67 / 2) = 38.19."""
    report = read_sweep(sweep)
    found = report["final"]["a"]
    assert (found["n"], found["min"], found["max"]) == (3, 25.0, 100.0)
    assert found["mean"] == pytest.approx(58.3333, abs=1e-3) and found["sd"] == pytest.approx(38.1881, abs=1e-3)
    # MFN per run: (50 + 75) / 2, (25 + 100) / 2, (100 + 50) / 2
    assert report["metrics"]["mfn"]["mean"] == pytest.approx((62.5 + 62.5 + 75) / 3)
    assert report["metrics"]["fwt"] == {"n": 0, "mean": None, "sd": None, "min": None, "max": None}
    first, second = report["orders"]
    assert first["order"] == ["a", "b"] and first["mfn"]["n"] == 2 and first["mfn"]["sd"] == 0.0
    assert second["mfn"]["n"] == 1 and second["mfn"]["sd"] is None and report["missing"] == []


def test_files_hold_every_run(sweep):
    paths = write_sweep(sweep)
    text = paths["markdown"].read_text()
    assert "toy: 3 runs" in text and "divided by n - 1" in text and "58.33" in text and "38.19" in text
    lines = paths["csv"].read_text().splitlines()
    assert len(lines) == 4 and lines[1].startswith("one,a-b,1,") and lines[1].endswith(",50.0000,75.0000")
    assert write_sweep(sweep) and paths["markdown"].read_text() == text == markdown(read_sweep(sweep))
    assert paths["csv"].read_text() == runs_csv(read_sweep(sweep))


def test_a_run_that_is_not_there_or_not_finished_is_named_and_counts_for_what_it_has(sweep):
    entries = [{"order": ["a", "b"], "seed": 1, "run": "one"}, {"order": ["b", "a"], "seed": 1, "run": "absent"}]
    half = FakeRun(sweep.parent / "half", [["a"], ["b"]])
    half.score(1, "a", answers(4))
    write_sealed(sweep / SWEEP, {"name": "toy", "runs": [*entries, {"order": ["b", "a"], "seed": 2, "run": "half"}]})
    report = read_sweep(sweep)
    assert report["missing"] == ["absent", "half"] and report["final"]["a"]["n"] == 1
    assert "Not finished: absent, half." in markdown(report)


def test_what_is_no_sweep_is_refused(sweep):
    (sweep / SWEEP).write_text("{}")
    with pytest.raises(StateError, match="sweep"):
        read_sweep(sweep)
    with pytest.raises(StateError, match="missing"):
        read_sweep(sweep.parent / "one")


def test_summary_of_one_and_of_none():
    assert summary([2.0]) == {"n": 1, "mean": 2.0, "sd": None, "min": 2.0, "max": 2.0}
    assert summary([None, 1.0, 3.0])["sd"] == pytest.approx(2**0.5) and summary([None])["n"] == 0


@pytest.mark.parametrize(
    ("tasks", "scored", "missing"), [(["b"], "b", []), (["b"], "a", ["run"]), ("none", "", ["run"])]
)
def test_a_run_is_finished_when_what_it_was_to_score_is_there(tmp_path, tasks, scored, missing):
    run = FakeRun(tmp_path / "run", [["a"], ["b"]], config={"eval": {"tasks": tasks}})
    if scored:
        run.score(2, scored, answers(2))
    write_sealed(tmp_path / "sweep" / SWEEP, {"name": "toy", "runs": [{"order": ["a"], "seed": 1, "run": "run"}]})
    assert read_sweep(tmp_path / "sweep")["missing"] == missing
    run.progress("01-s1").progress("02-s2")
    assert read_sweep(tmp_path / "sweep")["missing"] == ([] if tasks == "none" else missing)
