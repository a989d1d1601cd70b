"""Change of adapted matrices, against the matrices themselves."""

import pytest
import torch

from mcit.models.adapterfile import LoraPair
from mcit.train.moved import moved


def drawn(seed, rank, router=None):
    given = torch.Generator().manual_seed(seed)
    return LoraPair(torch.randn(rank, 5, generator=given), torch.randn(4, rank, generator=given), 2.0, router)


def test_a_matrix_by_hand():
    """2 * [1, 2]' [3, 0, 4] has squares 36 + 64 + 144 + 256 = 500 over 6 numbers."""
    pair = LoraPair(torch.tensor([[3.0, 0.0, 4.0]]), torch.tensor([[1.0], [2.0]]), 2.0)
    assert moved({"m": pair}, {}) == {"m": pytest.approx((500 / 6) ** 0.5)}


def test_what_was_there_before_is_taken_off():
    now, old = drawn(1, 2), drawn(2, 3)
    change = 2.0 * (now.B_OR @ now.A_RI) - 2.0 * (old.B_OR @ old.A_RI)
    assert moved({"m": now}, {"m": old})["m"] == pytest.approx(float(change.square().mean().sqrt()), rel=1e-5)
    assert moved({"m": now}, {"m": now})["m"] == pytest.approx(0, abs=1e-6)
    assert moved({"m": drawn(1, 2, router=torch.zeros(2, 5))}, {}) == {}
