import math

import pytest
import torch

from mcit.methods.formulas.prototypes import distances, embed, median_distance


def test_kl_by_hand_and_in_the_right_direction():
    """Oracle 11: prototype (ln 3, 0), output (0, 0): KL(prototype || output) 0.130812; the other way round 0.143841."""
    p, e = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    assert distances(e, p, "kl").item() == pytest.approx(0.130812, abs=1e-6)
    assert distances(p, e, "kl").item() == pytest.approx(0.143841, abs=1e-6)


def test_cosine_and_l2_by_hand():
    """(1, 0) and (0, 1): 1 - 0 and (1 + 1) / 2; (2, 0) and (1, 0): 0 and 1 / 2."""
    e, p = torch.tensor([[1.0, 0], [2.0, 0]]), torch.tensor([[0.0, 1], [1.0, 0]])
    assert distances(e, p, "cosine").tolist() == pytest.approx([1, 0])
    assert distances(e, p, "l2").tolist() == pytest.approx([1, 0.5])


def test_embedding_is_the_mean_where_answers_are_predicted():
    """Row one predicts at 1 and 2, row two at 0, row three nowhere."""
    hidden = torch.arange(24.0).view(3, 4, 2)
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 4, -100, -100], [-100] * 4])
    assert embed(hidden, labels).tolist() == [[3, 4], [8, 9], [0, 0]]


def test_median_distance_is_over_pairs():
    """l2 of 0 against 1, 2 and 4 is 1, 4 and 16: the median is 4."""
    assert median_distance(torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [4.0]]), "l2") == 4
