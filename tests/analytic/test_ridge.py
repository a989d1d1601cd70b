"""Oracles of analytic unlearning, and a thousand interleaved requests."""

import random

import pytest
import torch

from mcit.analytic.ridge import Ridge
from mcit.core.errors import StateError


def fitted(x, y, *, gamma=1.0, bits=None):
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    head = Ridge.empty(x.shape[1], y.shape[1], gamma=gamma, bits=bits)
    head.learn(x, y)
    return head


def test_three_rows_by_hand_and_the_third_forgotten():
    head = fitted([[1, 0], [0, 1], [1, 1]], [[1], [0], [1]])
    assert torch.allclose(head.inverse(), torch.tensor([[0.375, -0.125], [-0.125, 0.375]], dtype=torch.float64))
    assert torch.allclose(head.weight().flatten(), torch.tensor([0.625, 0.125], dtype=torch.float64))
    head.forget(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0]]))
    assert torch.allclose(head.inverse(), 0.5 * torch.eye(2, dtype=torch.float64))
    assert head.weight().flatten().tolist() == pytest.approx([0.5, 0.0])


def test_numbers_by_hand_and_everything_forgotten():
    head = fitted([[2], [1]], [[4], [3]])
    assert float(head.inverse()) == pytest.approx(1 / 6) and float(head.weight()) == pytest.approx(11 / 6)
    head.forget(torch.tensor([[2.0]]), torch.tensor([[4.0]]))
    assert float(head.inverse()) == pytest.approx(0.5) and float(head.weight()) == pytest.approx(1.5)
    head.forget(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert float(head.inverse()) == 1.0 and float(head.weight()) == 0.0


def test_what_was_never_learned_is_refused_and_nothing_changes():
    head = fitted([[1, 0]], [[1]])
    before = head.gram_DD.clone()
    for x in ([[0.0, 2.0]], [[3.0, 0.0]], [[1.0, 0.1]]):
        with pytest.raises(StateError, match="never learned"):
            head.forget(torch.tensor(x), torch.tensor([[1.0]]))
    assert torch.equal(head.gram_DD, before)


def test_learn_a_b_c_forget_b_is_learn_a_c_bit_for_bit():
    torch.manual_seed(0)
    (a, b, c), y = (torch.randn(3, 20, 8), torch.eye(3).repeat(7, 1)[:20])
    head, other = (Ridge.empty(8, 3, gamma=0.1, bits=10) for _ in range(2))
    for part in (a, b, c):
        head.learn(part, y)
    head.forget(b, y)
    for part in (c, a):
        other.learn(part, y)
    assert torch.equal(head.gram_DD, other.gram_DD) and torch.equal(head.weight(), other.weight())


@pytest.mark.parametrize("bits", [10, None])
def test_a_thousand_interleaved_requests_end_at_the_refit(bits):
    """Features as a language model has them: a few are a hundred times the others."""
    torch.manual_seed(1)
    rng = random.Random(2)
    x = torch.randn(600, 48) * torch.where(torch.arange(48) < 3, 30.0, 0.3)
    x = x * (48**0.5 / x.norm(dim=1, keepdim=True))
    y = torch.eye(5)[torch.arange(600) % 5]
    head, inside, outside = Ridge.empty(48, 5, gamma=0.1, bits=bits), [], list(range(600))
    for _ in range(1000):
        learning = not inside or (outside and rng.random() < 0.6)
        row = (outside if learning else inside).pop(rng.randrange(len(outside if learning else inside)))
        (head.learn if learning else head.forget)(x[[row]], y[[row]])
        (inside if learning else outside).append(row)
    again = Ridge.empty(48, 5, gamma=0.1, bits=bits)
    again.learn(x[sorted(inside)], y[sorted(inside)])
    apart = float((head.weight() - again.weight()).abs().max())
    assert apart <= 1e-10 and (bits is None or apart == 0.0)


def test_sums_that_would_be_rounded_are_refused():
    with pytest.raises(StateError, match="would be rounded"):
        fitted([[1e6]], [[1]], bits=20)


def test_new_targets_start_at_nothing():
    head = fitted([[1, 0], [0, 1]], [[1], [0]])
    before = head.weight()
    head.extend(2)
    assert torch.allclose(head.weight()[:, :1], before) and head.weight()[:, 1:].abs().sum() == 0
