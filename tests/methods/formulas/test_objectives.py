"""Forget losses by hand."""

import math

import pytest
import torch

from mcit.methods.formulas.objectives import (
    activation_distance,
    apart,
    lowered,
    peak,
    preference,
    reweighted,
    row_sums,
    without_truth,
)


def test_sums_of_rows():
    sums, counts = row_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    assert sums.tolist() == [3, 0, 4] and counts.tolist() == [2, 0, 1]


def test_preference_is_ascent_at_the_start_and_fades():
    """beta 0.1: 2 ln 2 / beta at the reference; 6.265234 with slope -0.537883 at +10; 19.481540 at -5; slope -1 at 0."""
    margin = torch.tensor([0.0, 10.0, -5.0], requires_grad=True)
    values = preference(margin, 0.1)
    values.sum().backward()
    assert values.tolist() == pytest.approx([13.862944, 6.265234, 19.481540], rel=1e-6)
    assert margin.grad.tolist()[:2] == pytest.approx([-1.0, -0.537883], rel=1e-5)
    assert preference(torch.tensor([1.5]), 4.5).tolist() == pytest.approx([5.2009e-4], rel=1e-4)
    assert preference(torch.tensor([0.0]), 4.5).tolist() == pytest.approx([0.308065], rel=1e-5)


def test_weights_of_tokens_are_constants():
    """l = 2: WGA 0.270671; SatImp e^-10 (1 - e^-2) 2; the gradient is the weight."""
    loss = torch.tensor([2.0], requires_grad=True)
    value = reweighted(loss, 1, 0)
    value.backward()
    assert value.item() == pytest.approx(0.270671, rel=1e-5) and loss.grad.item() == pytest.approx(math.exp(-2))
    assert reweighted(loss, 5, 1).item() == pytest.approx(2 * math.exp(-10) * (1 - math.exp(-2)), rel=1e-5)


def test_without_truth_by_hand():
    """Logits ln(4, 2, 1) with truth 0: target (0, 2/3, 1/3), so -(2/3 ln 2/7 + 1/3 ln 1/7)."""
    logits = torch.tensor([[4.0, 2.0, 1.0]]).log().requires_grad_()
    value = without_truth(logits, torch.tensor([0]))
    assert value.item() == pytest.approx(-(2 / 3 * math.log(2 / 7) + 1 / 3 * math.log(1 / 7)), rel=1e-6)
    value.sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([4 / 7, 2 / 7 - 2 / 3, 1 / 7 - 1 / 3], rel=1e-5)


def test_lowered_by_hand():
    """Reference ln(4, 1) with ln 4 off the truth: target (1/2, 1/2); at strength 0 the loss is the reference's entropy."""
    reference = torch.tensor([[4.0, 1.0]]).log()
    value = lowered(reference, reference, torch.tensor([0]), math.log(4))
    assert value.item() == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2, rel=1e-6)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert lowered(reference, reference, torch.tensor([0]), 0.0).item() == pytest.approx(entropy, rel=1e-6)


def test_peak_by_hand():
    assert peak(torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).tolist() == [4.0, 0.0]


def test_activation_distance_by_hand():
    """h (1, 1) and (0, 0), target (1.2, 1.6): (0.2 + 2.0) / 2 = 1.1; masked positions and empty rows do not count."""
    hidden = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    target = torch.tensor([1.2, 1.6]).expand_as(hidden)
    assert activation_distance(hidden, target, torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(1.1)
    assert activation_distance(hidden, target, torch.tensor([[True, False]])).item() == pytest.approx(0.2)
    assert activation_distance(hidden, target, torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_directions_are_orthogonal_to_earlier_ones():
    first = apart(torch.tensor([3.0, 4.0]), [])
    assert first.tolist() == pytest.approx([0.6, 0.8])
    assert apart(torch.tensor([1.0, 1.0]), [first]).tolist() == pytest.approx([0.8, -0.6], rel=1e-5)
