"""The matrix from score files."""

import os
import socket

import pytest

from mcit.core.errors import StateError
from mcit.core.stored import write_sealed
from mcit.report.matrix import read_matrix


def test_matrix_and_metrics(three) -> None:
    """Rows [50], [70, 40], [60, 50, 30]: MFT 40, MFN 140/3, BWT over T-1 ((60-50) + (50-40))/2 = 10,
    F ((70-60) + (40-50))/2 = 0, averages 50, 55, 46.67."""
    found = read_matrix(three.root)
    assert found["tasks"] == ["a", "b", "c"]
    assert found["matrix"] == [[50.0], [70.0, 40.0], [60.0, 50.0, 30.0]]
    assert found["base"] == [None, None, None]
    assert found["constant"] == [100.0, 100.0, 100.0]
    assert found["n"] == [[10], [10, 10], [10, 10, 10]]
    assert found["format_validity"] == [[100.0], [100.0, 100.0], [100.0, 100.0, 100.0]]
    metrics = found["metrics"]
    assert metrics["mft"] == pytest.approx(40.0)
    assert metrics["mfn"] == pytest.approx(140 / 3)
    assert metrics["bwt_earlier"] == pytest.approx(10.0)
    assert metrics["forgetting"] == pytest.approx(0.0)
    assert metrics["fwt"] is None
    assert metrics["average"] == pytest.approx([50.0, 55.0, 140 / 3])
    assert found["scorer_mode"] == "strict"
    assert found["scale"] == "percent"


def test_intervals(three) -> None:
    """Each interval holds its value; what is undefined has none. MFN's is narrower than that of one of its cells."""
    found = read_matrix(three.root)
    for name, value in found["metrics"].items():
        span = found["intervals"]["metrics"].get(name)
        if name == "average":
            continue
        assert (span is None) == (value is None), name
        if span:
            assert span[0] <= value + 1e-9 and value - 1e-9 <= span[1], name
    cell = found["intervals"]["matrix"][2][0]
    mfn = found["intervals"]["metrics"]["mfn"]
    assert cell[0] < 60 < cell[1]
    assert mfn[1] - mfn[0] < cell[1] - cell[0]


def test_intervals_are_paired(fake_run) -> None:
    """The same 5 of 10 questions right in both stages: nothing was forgotten in any resample, interval [0, 0]."""
    run = fake_run([["a"], ["b"]])
    run.shares(1, "a", 5).shares(2, "a", 5).shares(2, "b", 5)
    assert read_matrix(run.root)["intervals"]["metrics"]["bwt_earlier"] == [0.0, 0.0]


def test_holes_are_null(fake_run) -> None:
    """Stage 2 was not scored on task a, stage 3 not at all."""
    run = fake_run([["a"], ["b"], ["c"]])
    run.shares(1, "a", 5).shares(2, "b", 4)
    found = read_matrix(run.root)
    assert found["matrix"] == [[50.0], [None, 40.0], [None, None, None]]
    assert found["metrics"]["mft"] is None
    assert found["metrics"]["average"] == [50.0, None, None]
    assert found["intervals"]["metrics"]["mft"] is None
    assert found["kappa"][1] == [None, None]


def test_nothing_scored_yet(fake_run) -> None:
    found = read_matrix(fake_run([["a"], ["b"]]).root)
    assert found["matrix"] == [[None], [None, None]]
    assert found["constant"] == [None, None]
    assert set(map(str, found["metrics"].values())) == {"None", "[None, None]"}


def test_base_and_unseen_tasks(fake_run) -> None:
    """With the base row and the upper triangle: FWT = 30 - 10 = 20; row 1 is two cells long."""
    run = fake_run([["a"], ["b"]])
    run.shares(0, "a", 0).shares(0, "b", 1)
    run.shares(1, "a", 5).shares(1, "b", 3).shares(2, "a", 5).shares(2, "b", 8)
    found = read_matrix(run.root)
    assert found["base"] == [0.0, 10.0]
    assert found["matrix"] == [[50.0, 30.0], [50.0, 80.0]]
    assert found["metrics"]["fwt"] == pytest.approx(20.0)
    assert found["intervals"]["metrics"]["fwt"][0] < 20 < found["intervals"]["metrics"]["fwt"][1]


def test_joint_stage(fake_run) -> None:
    run = fake_run([["a", "b"]])
    run.shares(1, "a", 5).shares(1, "b", 7)
    found = read_matrix(run.root)
    assert found["matrix"] == [[50.0, 70.0]]
    assert found["first"] == [1, 1]
    assert found["metrics"]["mft"] == found["metrics"]["mfn"] == 60.0
    assert found["metrics"]["bwt_earlier"] is None


def test_task_seen_again_keeps_its_column(fake_run) -> None:
    """Task a in stages 1 and 3: its diagonal is stage 1."""
    run = fake_run([["a"], ["b"], ["a"]])
    for after, a, b in ((1, 5, None), (2, 3, 6), (3, 9, 6)):
        run.shares(after, "a", a)
        if b is not None:
            run.shares(after, "b", b)
    found = read_matrix(run.root)
    assert found["tasks"] == ["a", "b"]
    assert found["matrix"] == [[50.0], [30.0, 60.0], [90.0, 60.0]]
    assert found["metrics"]["mft"] == 55.0


def test_modes(fake_run) -> None:
    """ "Cat." is wrong under strict and right under fixed; the run's own mode is the default."""
    run = fake_run([["a"]], mode="fixed")
    run.score(1, "a", ["cat", "The cat"], gold=["cat", "cat"])
    assert read_matrix(run.root)["matrix"] == [[100.0]]
    assert read_matrix(run.root, mode="strict")["matrix"] == [[50.0]]
    assert read_matrix(run.root, mode="strict")["scorer_mode"] == "strict"


def test_kinds_of_forgetting(fake_run) -> None:
    """Task a, 4 rows, all right after stage 1. After stage 2: cat, dog, a sentence, a sentence.

    Superficial 2/4 = 50 %; of the two in the right form one is wrong now: essential 50 %. Task b is the last: no part
    of the mean."""
    run = fake_run([["a"], ["b"]])
    run.score(1, "a", ["cat"] * 4)
    run.score(2, "a", ["cat", "dog", "It is a cat.", "It is a dog."]).score(2, "b", ["It is so."] * 4)
    kinds = read_matrix(run.root)["forgetting_kinds"]
    assert kinds["tasks"]["a"] == {"superficial": 50.0, "essential": 50.0}
    assert kinds["tasks"]["b"] == {"superficial": 100.0, "essential": None}
    assert kinds["mean"] == {"superficial": 50.0, "essential": 50.0}


def test_kappa(fake_run) -> None:
    """Gold cat x3, dog x1: constant 75 %. All right: (100-75)/25 = 1."""
    run = fake_run([["a"]])
    run.score(1, "a", ["cat", "cat", "cat", "dog"], gold=["cat", "cat", "cat", "dog"])
    found = read_matrix(run.root)
    assert found["constant"] == [75.0]
    assert found["kappa"] == [[1.0]]


@pytest.mark.parametrize("name", ["rows.json", "score.json"])
@pytest.mark.parametrize("damage", ["edited", "gone"])
def test_a_changed_score_is_named_and_not_reported(three, name, damage) -> None:
    """With the command that makes it anew."""
    path = three.root / "evals" / "after-03" / "a" / name
    if damage == "edited":
        path.write_text(path.read_text().replace("0", "1", 1))
    else:
        path.unlink()
    with pytest.raises(StateError) as error:
        read_matrix(three.root)
    assert error.value.where == str(path)
    assert damage == "gone" or "checksum" in error.value.what and "--rescore" in error.value.fix
    for other in path.parent.iterdir():
        other.unlink()
    assert read_matrix(three.root)["matrix"][2] == [None, 50.0, 30.0], "a cell of nothing was never measured"


def test_no_run_folder_and_damage(tmp_path, three) -> None:
    with pytest.raises(StateError, match="not a run folder"):
        read_matrix(tmp_path / "nowhere")
    path = three.root / "evals" / "after-01" / "a" / "score.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(StateError, match="not valid JSON") as caught:
        read_matrix(three.root)
    assert caught.value.where == str(path)


def test_a_run_that_another_process_writes_has_answers_whose_score_is_still_to_come(three):
    (three.root / "evals" / "after-03" / "c" / "score.json").unlink()
    with pytest.raises(StateError, match="no score"):
        read_matrix(three.root)
    write_sealed(three.root / "lock.json", {"pid": os.getppid(), "host": socket.gethostname()})
    assert read_matrix(three.root)["matrix"][-1] == [60.0, 50.0, None]
    write_sealed(three.root / "lock.json", {"pid": os.getpid(), "host": socket.gethostname()})
    with pytest.raises(StateError, match="no score"):
        read_matrix(three.root)
