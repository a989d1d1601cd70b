"""Intervals and corrections against worked values."""

import pytest

from mcit.evals.inference import holm, paired_interval, relative_interval, sign_flip, wilson

IDS = [str(k) for k in range(60)]


def test_wilson():
    """57 of 60: lower bound 0.863 (z = 1.96); the ends stay inside [0, 1]."""
    assert wilson(57, 60)[0] == pytest.approx(0.863, abs=5e-4) and wilson(57, 60)[1] < 1
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1
    with pytest.raises(ValueError, match="a share of nothing"):
        wilson(0, 0)


def test_chance_of_an_untrained_model():
    """Recognition of 600 pairs by chance: 0.5 give or take 0.04."""
    low, high = wilson(300, 600)
    assert (low, high) == (pytest.approx(0.46, abs=1e-3), pytest.approx(0.54, abs=1e-3))


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert [p < 0.05 for p in holm([0.01, 0.04, 0.03])] == [True, False, False]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_pairs():
    """20 of 60 rows lost: a drop of 1/3 with a narrow interval; relative to 1 the same; no loss is no evidence."""
    before, after = [1.0] * 60, [0.0] * 20 + [1.0] * 40
    low, high = paired_interval(before, after, IDS)
    assert 0.2 < low < 1 / 3 < high < 0.47
    assert relative_interval(before, after, IDS) == pytest.approx([low, high])
    assert relative_interval([0.0] * 60, after, IDS) is None
    assert sign_flip(before, after, IDS) < 0.001 and sign_flip(before, before, IDS) == 1.0
    one = [0.0] + [1.0] * 59
    assert sign_flip(before, one, IDS) == 1.0  # either sign gives the same distance from 0
