import pytest

from mcit.evals.unlearning import drop, h_mean, losses, mean, recovery, resurgence, robustness


def test_h_mean_of_published_rows():
    """Oracle 12: retained 71.16, forgotten 70.88 to 0: 71.02; 74.88 with 74.88 to 72.45: 4.71 (published 4.72, rounding)."""
    assert h_mean(71.16, drop(70.88, 0)) == pytest.approx(71.02, abs=5e-3)
    assert h_mean(74.88, drop(74.88, 72.45)) == pytest.approx(4.71, abs=5e-3)


def test_no_drop_or_a_rise_is_zero_and_said():
    assert h_mean(70.0, drop(50, 50)) == 0 and drop(50, 60) == -10 and h_mean(70.0, -10) == 0
    assert h_mean(10.0, -10) == 0  # the formula would divide by 0
    assert h_mean(0.0, 0.0) == 0 and h_mean(0.0, 50) == 0


def test_h_mean_of_less_than_a_point():
    """2 x 0.5 x 0.5 / (0.5 + 0.5) = 0.5; 2 x 0.5 x 2 / 2.5 = 0.8 either way round."""
    assert h_mean(0.5, 0.5) == 0.5
    assert h_mean(0.5, 2.0) == h_mean(2.0, 0.5) == pytest.approx(0.8)


def test_what_was_not_measured_is_none():
    assert drop(None, 1) is drop(1, None) is h_mean(None, 1) is h_mean(1, None) is None
    assert resurgence(None, [1]) is resurgence(1, []) is resurgence(1, [None]) is None
    assert mean([]) is mean([1, None]) is None and mean([1, 3]) == 2


def test_resurgence():
    """Oracle 11 of the evaluation kit: 2 after the stage, then 2, 9, 5: 7 points."""
    assert resurgence(2, [2, 9, 5]) == 7 and resurgence(2, [None, 1]) == -1


def test_losses():
    assert losses({"a": 80, "b": 50, "c": None}, {"a": 76, "b": 55, "c": 1}) == {"a": 4, "b": -5}
    assert losses({"a": 80}, {}) == {}


def test_resurgence_and_robustness_of_the_card():
    """Accuracies as 100 (1 - UE): UE 35 before, 74 after, 70 after the attack: 35 / 39."""
    assert resurgence(2, [2, 9, 5]) == 7
    assert robustness(65, 26, 30) == pytest.approx(0.8974, abs=1e-4)
    assert robustness(65, 65, 70) is None and robustness(None, 1, 1) is None


def test_recovery_of_what_was_corrupted():
    """Clean 65, corrupted 30, then 50: 20 / 35; below the corrupted model it is negative, and nothing corrupted has none."""
    assert recovery(65, 30, 50) == pytest.approx(0.5714, abs=5e-5) and recovery(65, 30, 23) == pytest.approx(-0.2)
    assert recovery(30, 30, 50) is recovery(None, 30, 50) is recovery(65, 30, None) is None
