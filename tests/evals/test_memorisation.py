"""Oracles of the forgetting kit, by hand."""

import math

import pytest

from mcit.core.errors import TrainingError
from mcit.evals.memorisation import (
    exact_memorisation,
    extraction_strength,
    forget_quality,
    mean_loss,
    option_probability,
    probability,
    rouge_recall,
    truth_forgotten,
    truth_probability,
    truth_ratio,
    truth_retained,
    utility,
)


def hits(labels, found):
    return [a == b for a, b in zip(labels, found, strict=True)]


def test_loss_and_probability():
    assert mean_loss([-1.0, -3.0]) == 2.0 and mean_loss([]) == 0.0
    assert probability([0.0, math.log(4)]) == pytest.approx((1 + 0.25) / 2)


@pytest.mark.parametrize(
    ("found", "memorised", "strength"),
    [
        ((5, 0, 7, 8), 0.75, 0.5),
        ((5, 6, 7, 0), 0.75, 0.25),
        ((0, 0, 0, 0), 0.0, 0.25),
        ((5, 6, 7, 8), 1.0, 1.0),
    ],
)
def test_exact_memorisation_and_extraction_strength_with_its_floor(found, memorised, strength):
    made = hits((5, 6, 7, 8), found)
    assert exact_memorisation(made) == memorised and extraction_strength(made) == strength
    assert exact_memorisation([]) == extraction_strength([]) == 0.0


def test_rouge_l_recall_is_over_the_reference():
    """LCS "the sat" is 2 of 3 words of the reference and 2 of 4 of the output; swapped it would be .5."""
    assert rouge_recall("the cat sat", "the dog sat down") == pytest.approx(2 / 3)
    assert rouge_recall("the dog sat down", "the cat sat") == pytest.approx(0.5)


def test_truth_ratio_and_what_is_made_of_it():
    ratio = truth_ratio(1.0, [2.0, 3.0])
    assert ratio == pytest.approx(0.223130, abs=1e-6)
    assert truth_forgotten([ratio]) == pytest.approx(0.223130, abs=1e-6)
    assert truth_forgotten([1 / ratio, ratio]) == pytest.approx(ratio)
    assert truth_retained([ratio, 2.0]) == pytest.approx(0.776870 / 2, abs=1e-6)
    assert truth_probability(1.0, [2.0, 3.0]) == pytest.approx(0.817574, abs=1e-6)


def test_truth_ratios_of_broken_models():
    """Losses far apart stay numbers; those that are none are named."""
    ratio = truth_ratio(800.0, [1.0])
    assert math.isfinite(ratio) and 0 < truth_forgotten([ratio]) < 1e-300 and truth_retained([ratio]) == 0.0
    assert truth_probability(800.0, [1.0]) < 1e-300 and truth_ratio(1.0, [800.0]) == 0.0
    for losses in ((math.nan, [1.0]), (1.0, [math.inf, 2.0])):
        with pytest.raises(TrainingError, match="losses are not finite"):
            truth_ratio(*losses)


def test_options_and_utility():
    assert option_probability(0.4, [0.1, 0.2, 0.1]) == pytest.approx(0.5)
    assert utility({"a": 0.9, "b": 0.6, "c": 0.45}) == pytest.approx(0.6)
    assert utility({"a": 0.9, "b": 0.0}) == 0.0 == utility({})


def test_forget_quality_is_the_two_sample_test():
    found = forget_quality([0.1, 0.2, 0.3, 0.4], [0.35, 0.5, 0.6, 0.7])
    assert found == (pytest.approx(0.75), pytest.approx(0.228571, abs=1e-6))
    assert forget_quality([0.1, 0.2], [0.1, 0.2]) == (0.0, 1.0)
