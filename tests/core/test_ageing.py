"""The pruning rule, by hand."""

from math import exp

import pytest

from mcit.core.ageing import age_weight, lightest, recall_bonus


def test_the_card_s_example():
    """Relevance 0.8 at age 10 against 0.5 at age 0, tau 10: the first goes first."""
    old, new = age_weight(10, relevance=0.8, tau=10), age_weight(0, relevance=0.5, tau=10)
    assert old == pytest.approx(0.2943, abs=5e-5) and new == 0.5
    assert lightest([old, new], 1) == [0] and lightest([new, old], 1) == [1]


def test_the_paper_s_weight_with_either_sign():
    """lambda 1, gamma 0.002 (tau 500), beta 0.5; the text rewards recent recall, the formula what was not recalled."""
    assert age_weight(100, tau=1 / 0.002) == pytest.approx(exp(-0.2))
    assert (
        recall_bonus(True, beta=0.5, favours="recalled") == recall_bonus(False, beta=0.5, favours="unrecalled") == 0.5
    )
    assert (
        recall_bonus(False, beta=0.5, favours="recalled") == recall_bonus(True, beta=0.5, favours="unrecalled") == 0.0
    )


def test_of_equal_weights_the_earlier_go():
    assert lightest([1.0, 0.5, 0.5, 0.5], 2) == [1, 2]
    assert lightest([1.0], 0) == lightest([1.0], -3) == [] and lightest([2.0, 1.0], 5) == [0, 1]
