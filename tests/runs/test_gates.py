"""Records of gates and what is told of them; decisions on real runs are in tests/train/test_gating.py."""

import pytest

from mcit.core.errors import StateError
from mcit.core.records import GateRecord
from mcit.core.stored import valid
from mcit.runs.gates import read_gate, rejected, require_open, slices_of, stopped, words
from tests.fakes.run_dir import opened

RESULT = {
    "metric": "locality", "task": None, "unit": "share", "at_least": 0.95, "at_most": None, "first": False,
    "estimate": 0.95, "interval": [0.863, 0.983], "n": 60, "verdict": "inconclusive",
}  # fmt: skip
MISSING = {
    **RESULT, "metric": "accuracy", "task": "a", "unit": "points", "at_least": None, "at_most": 3.0,
    "estimate": None, "interval": None, "n": 0, "verdict": "not measured",
}  # fmt: skip
RECORD = {
    "stage": "02-s2", "index": 2, "gate_sha256": "a" * 64, "stage_sha256": "b" * 64, "before_sha256": "c" * 64,
    "verdict": "inconclusive", "results": [RESULT, MISSING], "ended": {"step": 3, "planned": 9, "reason": "gate: low"},
    "decision": "aside", "by": "gate", "time": "2026-01-01",
}  # fmt: skip


def test_the_record_has_a_schema():
    assert valid(GateRecord, RECORD, where="x") == RECORD
    for wrong in ({"verdict": "maybe"}, {"by": ""}, {"decision": "kept"}, {"results": [{**RESULT, "unit": None}]}):
        with pytest.raises(StateError, match="is not the record of a gate"):
            valid(GateRecord, {**RECORD, **wrong}, where="x")


def test_what_is_told(tmp_path):
    run = opened(tmp_path)
    assert words(RESULT) == "locality 0.950 (0.863 to 0.983), at least 0.95 share: inconclusive"
    assert words(MISSING) == "accuracy of a was not measured (at most 3 points)"
    error = stopped(run, RECORD)
    assert (
        error.exit_code == 6
        and "gate inconclusive: low; locality" in error.what
        and "more rows may decide it" in error.fix
    )
    relative = {**MISSING, "metric": "drawdown", "task": None, "unit": "relative"}
    assert words(relative).endswith(
        "(at most 3 relative): too few answers were right before the stage, unit: points needs none"
    )
    first = {**RECORD, "results": [{**RESULT, "first": True}, relative], "ended": None}
    assert "was not measured" not in stopped(run, first).what  # nothing of it was scored, so nothing is said of it
    assert error.where == "stage 02-s2" and "--stage 2 --by NAME" in error.fix


def test_a_run_without_gates(tmp_path):
    run = opened(tmp_path)
    assert rejected(run) == frozenset() and read_gate(run.layout, "01-a") is None
    require_open(run, "01-a")


def test_slices_leave_out_what_only_rejected_stages_trained():
    """Stage 3 comes after a rejected one of task b; a stage after that trains b, which then can be lost again."""
    stages = [
        {"index": k, "folder": f"0{k}", "tasks": [task], "slices": {"retention": kept, "neighbourhood": ["near"]}}
        for k, (task, kept) in enumerate(
            [("a", []), ("b", ["a"]), ("c", ["a", "b"]), ("b", ["a", "c"]), ("d", ["a", "b"])], 1
        )
    ]
    for number, kept in ((3, ["a"]), (4, ["a", "c"]), (5, ["a", "b"])):
        stage = stages[number - 1]
        expected = {"tasks": stage["tasks"], "retention": kept, "neighbourhood": ["near"]}
        assert slices_of(stage, stages, frozenset({"02"})) == expected
    assert slices_of(stages[2], stages, frozenset())["retention"] == ["a", "b"]
    none = {"tasks": ["a"], "neighbourhood": [], "rephrased": [], "retention": []}
    assert slices_of({"index": 1, "folder": "01", "tasks": ["a"]}, stages, frozenset()) == none
