"""Oracles of membership scores, by hand."""

import math
import zlib

import pytest

from mcit.core.errors import TrainingError
from mcit.evals.membership import auc, min_k, min_k_plus, priv_leak, reference_score, zlib_score


def moments(p):
    mean = sum(q * math.log(q) for q in p)
    return mean, sum(q * (math.log(q) - mean) ** 2 for q in p)


def test_auc_and_privleak():
    found = auc([1, 2, 3], [2.5, 4, 5])
    assert found == pytest.approx(8 / 9)
    assert priv_leak(found) == pytest.approx(-77.78, abs=0.01)
    assert priv_leak(0.2) == pytest.approx(60.0) and priv_leak(1.0) == -100.0 and priv_leak(0.7, 0.7) == 0.0
    assert priv_leak(0.9, 1.0) is None is priv_leak(0.5, 1.0), "not ideal, but not defined"


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_scores_that_are_not_finite_are_named(bad):
    with pytest.raises(TrainingError, match="membership: 1 of 3 scores are not finite"):
        auc([1.0, bad], [2.0])


def test_min_k():
    assert min_k([-0.1, -0.2, -3.0, -1.0, -0.5]) == pytest.approx(2.0)
    assert min_k([]) == 0.0 and min_k([-0.7]) == pytest.approx(0.7)


def test_min_k_plus():
    mean, variance = moments((0.7, 0.2, 0.1))
    assert (mean, variance) == (pytest.approx(-0.801819, abs=1e-6), pytest.approx(0.494387, abs=1e-6))
    given = {"mean_T": [mean], "variance_T": [variance]}
    assert min_k_plus([math.log(0.7)], **given) == pytest.approx(-0.633092, abs=1e-6)
    assert min_k_plus([math.log(0.1)], **given) == pytest.approx(2.134419, abs=1e-6)
    assert min_k_plus([-1.0], [0.0], [0.0]) == pytest.approx(1000.0)  # the variance has a floor


def test_zlib_and_reference():
    text = "the cat sat on the mat"
    assert len(zlib.compress(text.encode())) == 27
    assert zlib_score([-2.7], text) == pytest.approx(0.1)
    assert reference_score(3.0, 1.0) == 2.0
