import pytest
import torch

from mcit.methods.formulas.drift import due, mean_drift, most_moved


def test_drift_by_hand():
    """(1, 2, 3, 4) to (1, 2.5, 2, 4): 1.5 / 4 = 0.375."""
    assert mean_drift(torch.tensor([1.0, 2.5, 2, 4]), torch.tensor([1.0, 2, 3, 4])).item() == pytest.approx(0.375)


def test_the_most_moved_within_a_share_of_the_numbers():
    """30 of 100 numbers: b (20) and then a, whose 30 do not fit any more; one is always chosen; ties go by name."""
    drift, sizes = {"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 30, "b": 20, "c": 50}
    assert most_moved(drift, sizes, 0.3) == ["b"] and most_moved(drift, sizes, 0.5) == ["a", "b"]
    assert most_moved(drift, sizes, 0.01) == ["b"] and most_moved({"y": 1.0, "x": 1.0}, {"x": 1, "y": 1}, 0.5) == ["x"]


def test_times_of_k_fpf_by_hand():
    """1,000 steps and k = 4: after 250, 500, 750 and 1,000; k = 1: at the end only; 0 is never."""
    assert [s for s in range(1001) if due(s, 250)] == [250, 500, 750, 1000]
    assert [s for s in range(1001) if due(s, 1000)] == [1000]
    assert not any(due(s, 0) for s in range(10))
