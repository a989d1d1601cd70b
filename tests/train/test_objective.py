import pytest
import torch

from mcit.core.types import Counts
from mcit.train.objective import task_loss
from tests.fakes.steps import batch, output


def test_sum_over_the_steps_tokens_by_hand():
    """Two tokens at ln 4 each, 8 answer tokens in the whole step: 2 ln 4 / 8."""
    out, counts = output(torch.zeros(2, 4), [0, 1]), Counts({"task": 8}, {"task": 3})
    assert task_loss(out, batch(), counts, replaced=False).item() == pytest.approx(1.3862943611 / 4)
    assert task_loss(out, batch("replay"), counts, replaced=False).item() == 0.0
    assert task_loss(out, batch(), counts, replaced=True).item() == 0.0
