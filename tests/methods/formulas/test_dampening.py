import pytest
import torch

from mcit.methods.formulas.dampening import SAMPLED, kept_share, percentile, ratios, selected

THETA = torch.tensor([2.0, -4.0, 1.0, 3.0])
ALL, FORGET = torch.tensor([1.0, 1.0, 2.0, 0.0]), torch.tensor([20.0, 5.0, 40.0, 7.0])


def test_oracles():
    """alpha 10, lambda 1: (.1, -4, .05, 0); alpha 50, lambda .1: only the weight that no other row uses; the cap at 1."""
    for alpha, strength, after in ((10, 1.0, [0.1, -4.0, 0.05, 0.0]), (50, 0.1, [2.0, -4.0, 1.0, 0.0])):
        assert (THETA * kept_share(ALL, FORGET, alpha=alpha, strength=strength)).tolist() == pytest.approx(after)
    capped = kept_share(torch.tensor([1.0]), torch.tensor([2.0]), alpha=1, strength=5.0)
    assert capped.tolist() == [1.0]


def test_what_matters_for_no_row_is_left_alone():
    zero = torch.zeros(2)
    assert not selected(zero, zero, 1.0).any() and kept_share(zero, zero, alpha=1.0, strength=1.0).tolist() == [
        1.0,
        1.0,
    ]


def test_percentiles_of_ratios():
    """Ratios 20, 5, 20, infinite: the 50th percentile is 20, above which only the last lies."""
    found = ratios(ALL, FORGET)
    assert found.tolist() == [20.0, 5.0, 20.0, float("inf")]
    assert percentile([found], 50) == 20.0 and percentile([found[:2], found[2:]], 10) == 5.0
    assert len(ratios(torch.ones(3 * SAMPLED), torch.ones(3 * SAMPLED))) == SAMPLED
    assert ratios(torch.zeros(1), torch.zeros(1)).tolist() == [0.0]
