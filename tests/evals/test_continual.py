"""Metrics of continual learning against matrices worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcit.evals import continual
from mcit.evals.continual import ScoreMatrix, general_f1, lost

T1 = ScoreMatrix.of([[80], [60, 70], [50, 66, 90]])


def test_t1() -> None:
    """Oracle T1. MFT (80+70+90)/3 = 80; MFN (50+66+90)/3 = 68.6667; MAA (80 + 65 + 68.6667)/3 = 71.2222;
    BWT over T (-30 - 4 + 0)/3 = -11.3333; over T-1 (-30 - 4)/2 = -17; F ((80-50) + (70-66))/2 = 17;
    retention 68.6667/80 = 0.8583."""
    found = continual.metrics(T1)
    assert found["mft"] == pytest.approx(80.0)
    assert found["mfn"] == pytest.approx(68.6667, abs=1e-4)
    assert found["maa"] == pytest.approx(71.2222, abs=1e-4)
    assert found["bwt_all"] == pytest.approx(-11.3333, abs=1e-4)
    assert found["bwt_earlier"] == pytest.approx(-17.0)
    assert found["forgetting"] == pytest.approx(17.0)
    assert found["retention"] == pytest.approx(0.8583, abs=1e-4)
    assert found["fwt"] is None


def test_t2_forgetting_uses_the_best() -> None:
    """Oracle T2: best of task 1 is 70, F = ((70-60) + (40-45))/2 = 2.5; BWT = ((60-50) + (45-40))/2 = 7.5."""
    m = ScoreMatrix.of([[50], [70, 40], [60, 45, 30]])
    assert continual.forgetting(m) == pytest.approx(2.5)
    assert continual.bwt_earlier(m) == pytest.approx(7.5)


def test_t3_forward_transfer() -> None:
    """Oracle T3: ((26-20) + (33-30))/2 = 4.5, with the scores above the diagonal."""
    m = ScoreMatrix.of([[50, 26], [50, 60, 33], [50, 60, 70]], base=[10, 20, 30])
    assert continual.fwt(m) == pytest.approx(4.5)
    assert continual.fwt(ScoreMatrix.of(m.rows)) is None
    assert continual.fwt(ScoreMatrix.of([[50], [50, 60, 33], [50, 60, 70]], base=[10, 20, 30])) is None


def test_forward_transfer_takes_the_row_just_before_a_task() -> None:
    """Third task: 33 just before it is trained (31 a stage earlier) against base 30; second: 26 against 20; mean 4.5.
    Fourth column: 9 - 1 = 8, so (6 + 3 + 8)/3 = 17/3."""
    rows = [[50, 26, 31, 5], [50, 60, 33, 6], [50, 60, 70, 9], [50, 60, 70, 80]]
    assert continual.fwt(ScoreMatrix.of(rows, base=[10, 20, 30, 1])) == pytest.approx(17 / 3)


def test_t4_one_task() -> None:
    """Oracle T4: everything is 75, backward transfer over T is 0, what divides by T-1 is undefined."""
    found = continual.metrics(ScoreMatrix.of([[75]]))
    assert found["mft"] == found["mfn"] == found["maa"] == 75
    assert found["bwt_all"] == 0
    assert found["bwt_earlier"] is None
    assert found["forgetting"] is None
    assert found["fwt"] is None


def test_t19_maa_is_not_the_mean_of_the_cells() -> None:
    """Oracle T19: the mean of the six cells is 416/6 = 69.3333, MAA is 71.2222."""
    cells = [cell for row in T1.rows for cell in row]
    assert sum(cells) / len(cells) == pytest.approx(69.3333, abs=1e-4)
    assert continual.maa(T1) == pytest.approx(71.2222, abs=1e-4)


def test_undefined_is_none_never_zero() -> None:
    """Without A[2][1], the average after stage 2, MAA and forgetting are undefined; the rest is not."""
    m = ScoreMatrix.of([[80], [None, 70], [50, 66, 90]])
    found = continual.metrics(m)
    assert found["maa"] is None
    assert found["forgetting"] is None
    assert found["mft"] == pytest.approx(80)
    assert found["bwt_earlier"] == pytest.approx(-17)
    unfinished = continual.metrics(ScoreMatrix.of([[80], [60, 70], []]))
    assert set(unfinished.values()) == {None}
    assert continual.average(ScoreMatrix.of([[80], [60, 70], []]), 1) == 65


def test_zero_scores_are_scores() -> None:
    """A retention from 0 is undefined, but 0 is a score everywhere else: F = 40 - 0."""
    m = ScoreMatrix.of([[40], [0, 0]])
    assert continual.forgetting(m) == 40
    assert continual.mfn(m) == 0
    assert continual.retention(ScoreMatrix.of([[0], [0, 0]])) is None


def test_joint_training() -> None:
    """One stage with three tasks: MFT = MFN = MAA = 60, nothing is earlier."""
    found = continual.metrics(ScoreMatrix.of([[50, 60, 70]], first=[0, 0, 0]))
    assert found["mft"] == found["mfn"] == found["maa"] == 60
    assert found["bwt_all"] == 0
    assert found["bwt_earlier"] is None


def test_stages_with_several_tasks_or_none() -> None:
    """Tasks a, b in stage 1, c in stage 2, nothing new in stage 3. BWT over E = {a, b, c}: (-10 - 20 + 5)/3."""
    m = ScoreMatrix.of([[50, 60], [45, 50, 30], [40, 40, 35]], first=[0, 0, 1])
    assert continual.mft(m) == pytest.approx((50 + 60 + 30) / 3)
    assert continual.bwt_earlier(m) == pytest.approx(-25 / 3)
    assert continual.bwt_all(m) == pytest.approx(-25 / 3)
    assert continual.maa(m) == pytest.approx((55 + 125 / 3 + 115 / 3) / 3)
    assert continual.forgetting(m) == pytest.approx((10 + 20 - 5) / 3)
    with pytest.raises(ValueError, match="first time"):
        ScoreMatrix.of([[1]], first=[1])


def test_plasticity_gap() -> None:
    """(82-80 + 75-70 + 91-90)/3 = 8/3."""
    assert continual.plasticity_gap(T1, [82, 75, 91]) == pytest.approx(8 / 3)
    assert continual.plasticity_gap(T1, [82, None, 91]) is None


score = st.floats(0, 100)


@st.composite
def matrices(draw: st.DrawFn) -> ScoreMatrix:
    size = draw(st.integers(2, 6))
    return ScoreMatrix.of([[draw(score) for _ in range(row + 1)] for row in range(size)])


@given(matrices())
def test_t20_relations(m: ScoreMatrix) -> None:
    """Oracle T20: BWT over T is MFN - MFT, and BWT over T-1 is that times T/(T-1); F is never below -BWT over T-1."""
    size = len(m.rows)
    assert continual.bwt_all(m) == pytest.approx(continual.mfn(m) - continual.mft(m), abs=1e-9)
    assert continual.bwt_earlier(m) == pytest.approx(continual.bwt_all(m) * size / (size - 1), abs=1e-9)
    assert continual.forgetting(m) >= -continual.bwt_earlier(m) - 1e-9


@given(matrices(), st.integers(0, 5), st.integers(0, 5))
def test_a_hole_never_becomes_a_number(m: ScoreMatrix, row: int, task: int) -> None:
    """Blanking one cell leaves each metric as it was or makes it None."""
    rows = [list(r) for r in m.rows]
    row %= len(rows)
    rows[row][task % len(rows[row])] = None
    before, after = continual.metrics(m), continual.metrics(ScoreMatrix.of(rows))
    assert all(after[name] in (None, before[name]) for name in before)


def test_superficial_and_essential() -> None:
    """Five rows; now valid: 1, 2, 3, 4. F_sup = 1/5 = 20 %. Right then and wrong now among the valid: rows 2 and 3 of
    four = 50 %; row 5 was right too, but its answer has the wrong form, so it is superficial only."""
    found = lost([1, 1, 1, 0, 1], [1, 0, 0, 1, 0], [1, 1, 1, 1, 0])
    assert found is not None
    assert found.superficial == pytest.approx(20.0)
    assert found.essential == pytest.approx(50.0)


def test_superficial_only() -> None:
    found = lost([1, 1], [0, 0], [0, 0])
    assert found is not None
    assert found.superficial == 100.0
    assert found.essential is None
    assert lost([], [], []) is None


def test_general_f1_of_published_rows():
    """Oracle 15 of the GeRe card: both published rows reproduce to four decimals."""
    assert general_f1(60.7155, 74.0817) == pytest.approx(66.7359, abs=5e-5)
    assert general_f1(66.2539, 64.4417) == pytest.approx(65.3352, abs=5e-5)
    assert general_f1(0.0, 0.0) == 0.0
    assert general_f1(60.0, 60.0) == 60.0  # the mean of two equal scores is that score
