import math

import pytest
import torch

from mcit.methods.formulas.forgetting import (
    batch_bound,
    predicting,
    pushed_tokens,
    row_bound,
    row_means,
    shared_ends,
    token_bound,
    without_pictures,
)
from tests.fakes.steps import batch

ALL = torch.ones(3, dtype=torch.bool)


def losses(*values):
    return torch.tensor(values, requires_grad=True)


def test_bound_by_hand():
    """Oracle 2: bound 10: a loss of 7.25 costs 2.75, one of 10 or 12 nothing and has no gradient; ln 32000 - 2.5 = 7.8735."""
    assert batch_bound(losses(7.25), 10).item() == 2.75
    for nll in (10.0, 12.0):
        given = losses(nll)
        value = batch_bound(given, 10)
        value.backward()
        assert value.item() == 0 and given.grad.item() == 0
    assert batch_bound(losses(2.5), math.log(32_000)).item() == pytest.approx(7.8735, abs=1e-4)


def test_three_bounds_on_three_losses():
    """Oracle 3: losses 2, 14, 1 and bound 10: on the batch 10 - 17/3 = 4.3333, on each 17 / 3 = 5.6667. The one at 14 has
    gradient -1/3 in the first and 0 in the others."""
    given = losses(2.0, 14.0, 1.0)
    value = batch_bound(given, 10)
    value.backward()
    assert value.item() == pytest.approx(4.3333, abs=1e-4) and given.grad[1].item() == pytest.approx(-1 / 3)
    for summed in (
        lambda nll: token_bound(nll, 10.0, ALL),
        lambda nll: row_bound(nll, torch.tensor([0, 1, 2]), torch.full((3,), 10.0), ALL),
    ):
        given = losses(2.0, 14.0, 1.0)
        value = summed(given) / 3
        value.backward()
        assert value.item() == pytest.approx(5.6667, abs=1e-4)
        assert given.grad.tolist() == pytest.approx([-1 / 3, 0, -1 / 3])


def test_a_token_does_not_pay_for_its_row():
    """Row (2, 40), bound 10: the row's mean 21 is past the bound, its first token is 8 short of it."""
    nll, row = losses(2.0, 40.0), torch.tensor([0, 0])
    assert row_bound(nll, row, torch.tensor([10.0]), ALL[:2]).item() == 0
    assert token_bound(nll, 10.0, ALL[:2]).item() == 8


def test_row_means_over_pushed_tokens():
    """Rows (1, 3, 100) without the last and (5), and one with nothing pushed: 2, 5 and 0; the empty row adds nothing."""
    nll, row = torch.tensor([1.0, 3, 100, 5, 9]), torch.tensor([0, 0, 0, 1, 2])
    pushed = torch.tensor([True, True, False, True, False])
    means, counts = row_means(nll, row, pushed, rows=3)
    assert means.tolist() == [2, 5, 0] and counts.tolist() == [2, 1, 0]
    assert row_bound(nll, row, torch.tensor([10.0, 10, 10]), pushed).item() == 8 + 5


def test_pushed_tokens():
    row = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    assert pushed_tokens(row, head=1, tail=1).tolist() == [False, True, True, False, False, False, False]
    assert pushed_tokens(row, head=0, tail=1).tolist() == [True, True, True, False, True, False, False]
    assert pushed_tokens(row, head=0, tail=0).all()


def test_shared_ends():
    """7 8 _ 9 is the frame of all three; the shortest answer to forget keeps one token."""
    answers = [[7, 8, 1, 9], [7, 8, 2, 3, 9], [7, 8, 4, 9]]
    assert shared_ends(answers, leave=answers) == (2, 1)
    assert shared_ends([[1, 9], [2, 9]], leave=[[1, 9]]) == (0, 1)
    assert shared_ends([[5, 9], [5, 9]], leave=[[5, 9]]) == (0, 1)  # one answer for all: only the end is given up
    assert shared_ends([[9], [9]], leave=[[9]]) == (0, 0)
    assert shared_ends([], leave=[]) == (0, 0)


def test_two_answers_suffice_to_tell_content_from_frame():
    """7 _ _ 9: the second token is 1 or 3, the last but one 2 or 4, so one token is shared at each end."""
    assert shared_ends([[7, 1, 2, 9], [7, 3, 4, 9]], leave=[[0] * 9]) == (1, 1)


def test_pictures_are_blanked_and_nothing_else():
    from dataclasses import replace

    given = replace(batch("forget"), pixels={"pixel_values": torch.ones(1, 3, 2, 2), "sizes": torch.tensor([[2, 2]])})
    blank = without_pictures(given)
    assert not blank.pixels["pixel_values"].any() and blank.pixels["sizes"].tolist() == [[2, 2]]
    assert given.pixels["pixel_values"].all() and blank.input_ids_BT is given.input_ids_BT


def test_predicting_positions():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 4, -100, -100]])
    assert predicting(labels).tolist() == [[False, True, True, False], [True, False, False, False]]
