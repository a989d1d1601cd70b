"""Resampling questions."""

import numpy as np
import pytest

from mcit.evals.bootstrap import interval, percentile_interval, resampled_means

IDS = [f"q{i}" for i in range(40)]


def test_depends_on_the_ids_alone() -> None:
    values = [float(i % 3) for i in range(40)]
    first = resampled_means([values], IDS)
    assert (first == resampled_means([values], IDS)).all()
    assert (first != resampled_means([values], IDS[::-1])).any()


def test_cells_of_a_task_are_resampled_alike() -> None:
    """A constant difference between two cells stays exactly that in every resample: paired, no extra noise."""
    a = [float(i % 2) for i in range(40)]
    means = resampled_means([a, [v + 2 for v in a]], IDS)
    assert np.allclose(means[1] - means[0], 2.0, atol=1e-12)
    assert (resampled_means([[v + 2 for v in a]], IDS)[0] == means[1]).all()


def test_every_question_can_be_drawn() -> None:
    """Two questions, 1 and 0: a resample is 11, 10, 01 or 00, so its mean is 1, 0.5 or 0, all of them in a hundred."""
    assert set(resampled_means([[1.0, 0.0]], ["a", "b"], resamples=100)[0]) == {0.0, 0.5, 1.0}


def test_intervals_are_of_a_thousand_resamples() -> None:
    """Intervals in a stored score and those of a report must come from the same resamples to be comparable."""
    assert resampled_means([[1.0], [0.0]], ["a"]).shape == (2, 1000)


def test_width_of_a_proportion() -> None:
    """p = 0.5, n = 400: standard error 0.025, so the 95 % interval is about 0.5 +- 0.049."""
    values = [float(i % 2) for i in range(400)]
    low, high = interval(values, [str(i) for i in range(400)])
    assert low == pytest.approx(0.451, abs=0.01)
    assert high == pytest.approx(0.549, abs=0.01)


def test_edges() -> None:
    assert interval([1.0, 1.0], ["a", "b"]) == [1.0, 1.0]
    assert interval([], []) is None
    assert percentile_interval([float(i) for i in range(101)]) == [2.5, 97.5]
