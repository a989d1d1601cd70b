"""Detectors by a guard's settings, on two clouds of prompts."""

import pytest
import torch

from mcit.analytic.detector import probability
from mcit.methods.formulas.detection import held_out, network, ridge, some_rows
from mcit.methods.guard import Guard
from tests.fakes.rows import row

ROWS = [row(f"q{i % 4}", "a", id=f"r{i}") for i in range(40)]
LABELS = (torch.arange(40) % 4 == 0).float()


def prompts(apart):
    x_ND = 0.3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    x_ND[:, 0] += apart * LABELS
    x_ND[:, 1] += apart * (1 - LABELS)
    return x_ND


@pytest.mark.parametrize("kind", ["mlp", "analytic"])
def test_errors_are_of_prompts_that_were_not_seen(kind):
    """Clouds 9 apart are told apart; where every prompt is the same all get one answer."""
    config = Guard.Config(detector=kind, width=8, steps=100, lr=1e-2)
    found = held_out(config, prompts(9.0), LABELS, ROWS, seed=1)
    assert found["recall"] == 1 and found["false_alarms"] <= 0.2
    alike = held_out(config, torch.ones(40, 6), LABELS, ROWS, seed=1)
    assert float(alike["recall"]) == float(alike["false_alarms"])
    assert "false_alarms_same_question" not in found  # q0 is asked by prompts to forget alone
    assert held_out(config, prompts(9.0), torch.zeros(40), ROWS, seed=1) == {}


def test_both_detectors_answer_for_one_vector():
    config, x_ND = Guard.Config(width=8, steps=100, lr=1e-2), prompts(9.0)
    for tensors in (network(config, x_ND, LABELS, 3), {"weight": ridge(config, x_ND, LABELS, ROWS).weight()}):
        assert ((probability(tensors, x_ND) >= 0.5).float() == LABELS).float().mean() > 0.9


def test_rows_are_drawn_in_their_order():
    drawn = some_rows(ROWS, 5, 7)
    assert len(drawn) == 5 and drawn == sorted(drawn, key=ROWS.index) and drawn != ROWS[:5]
    assert some_rows(ROWS, 99, 7) == ROWS and some_rows(ROWS, 5, 8) != drawn
