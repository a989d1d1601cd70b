"""Recovery of what a stage overwrote, from fake runs of known answers."""

import pytest

from mcit.core.stored import write_sealed
from mcit.report.recovery import read_recovery, recovery_lines, shown, with_interval
from mcit.report.tables import full_report, markdown
from mcit.runs.layout import RunLayout
from tests.fakes.run_dir import create, rejection

FALSE = [{"stage": "03-s3", "residual_corruption": 0.5}]


@pytest.fixture
def restored(fake_run):
    """Learn, corrupt, forget, repair: ``true`` is right in 9, 1, 5 and 7 of 10."""
    run = fake_run([["rest", "true"], ["false"], ["rest"], ["rest"]])
    run.plan["stages"][2]["forget"] = run.plan["forget_tasks"] = ["false"]
    create(run.root, run.plan)
    for after, right in enumerate((9, 1, 5, 7), start=1):
        run.shares(after, "true", right).shares(after, "rest", 8)
    return run


def test_a_rejected_stage_between_them_is_left_out(fake_run):
    run = fake_run([["rest", "true"], ["other"], ["false"], ["other"], ["rest"], ["rest"]])
    run.plan["stages"][4]["forget"] = run.plan["forget_tasks"] = ["false"]
    create(run.root, run.plan)
    for folder in ("02-s2", "04-s4"):
        write_sealed(RunLayout(run.root).gate(folder), rejection(folder))
    for after, right in ((1, 9), (3, 1), (5, 5), (6, 7)):
        run.shares(after, "true", right)
    (entry,) = read_recovery(run.root, [{"stage": "05-s5", "residual_corruption": 0.5}], mode="strict")
    assert [entry[k] for k in ("corrupted_in", "clean", "corrupted")] == ["03-s3", 90, 10]
    values = {folder: now["recovery"][0] for folder, now in entry["after"].items()}
    assert values == {"05-s5": pytest.approx(0.5), "06-s6": pytest.approx(0.75)}


def test_recovery_by_hand(restored):
    """(5 - 1) / (9 - 1) and (7 - 1) / (9 - 1)."""
    (entry,) = read_recovery(restored.root, FALSE, mode="strict")
    assert [entry[k] for k in ("stage", "task", "corrupted_in", "clean", "corrupted")] == [
        "03-s3",
        "true",
        "02-s2",
        90,
        10,
    ]
    values = {folder: (now["accuracy"], now["recovery"][0]) for folder, now in entry["after"].items()}
    assert values == {"03-s3": (50, pytest.approx(0.5)), "04-s4": (70, pytest.approx(0.75))}
    low, high = entry["after"]["03-s3"]["recovery"][1:]
    assert 0 < low < 0.5 < high <= 1
    (line,) = recovery_lines([entry])
    assert (
        line.startswith("Recovery of true, which 02-s2 took from 90.0 to 10.0 %: 0.50 [")
        and "after 04-s4 (70.0 %)" in line
    )


def test_only_of_relabelled_rows_that_a_stage_was_trained_on(restored, fake_run):
    assert read_recovery(restored.root, [], mode="strict") == []
    assert read_recovery(restored.root, [{"stage": "03-s3", "residual_corruption": None}], mode="strict") == []
    assert "Recovery of" not in markdown(full_report(restored.root))
    run = fake_run([["true"], ["rest"], ["rest"]], "other")
    run.plan["stages"][2]["forget"] = ["false"]
    create(run.root, run.plan)
    run.shares(1, "true", 9).shares(2, "true", 1).shares(3, "true", 5)
    assert read_recovery(run.root, FALSE, mode="strict") == []


def test_a_run_that_is_not_there_yet_has_no_line(restored, fake_run):
    run = fake_run([["rest", "true"], ["false"], ["rest"]], "begun")
    run.plan["stages"][2]["forget"] = ["false"]
    create(run.root, run.plan)
    run.shares(1, "true", 9)
    assert read_recovery(run.root, FALSE, mode="strict") == []
    run.shares(2, "true", 1)
    (entry,) = read_recovery(run.root, FALSE, mode="strict")
    assert entry["after"] == {} and recovery_lines([entry]) == []


def test_nothing_was_corrupted():
    assert with_interval([1, 0], [1, 0], [0, 0], ids=["a", "b"]) is None and shown(None) == "–"
