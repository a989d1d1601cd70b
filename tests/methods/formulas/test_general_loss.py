"""What GeRe adds to the loss, on rows and states by hand; see also tests/methods/test_gere.py."""

from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.methods.formulas.general_loss import feature_sum
from mcit.methods.formulas.margin import states
from tests.fakes.general import StoredStates, general_batch


def test_a_margin_over_the_micro_batch_refuses_a_part_of_the_step():
    batch, out = general_batch("r")
    with pytest.raises(TrainingError, match="1 of the step's 2 general rows"):
        feature_sum(out, batch, StoredStates(), [0], variant="tm", together=2)


def test_rows_of_both_types_have_their_own_thresholds():
    """Both positions are 0 in states "middle": type 0 has (-1, 1), no loss; type 1 has (0.5, 1) in each of 3 features: 0.5."""
    high, low = torch.ones(2, 3), torch.tensor([[-1.0] * 3, [0.5] * 3])
    middle = states(torch.full((2, 3), 0.75), high, low)
    for kinds, expected in (((0, 1), 0.5), ((1, 0), 0.5), ((0, 0), 0.0), ((1, 1), 1.0)):
        blob = SimpleNamespace(index={"rows": {f"r{i}": [i, i + 1, kind] for i, kind in enumerate(kinds)}})
        blob.get = {"high": high, "low": low}.get
        blob.rows = lambda name, start, stop: middle[start:stop]
        batch, out = general_batch("r0", "r1", current=torch.zeros(2, 3))
        assert feature_sum(out, batch, blob, [0, 1], variant="tm").item() == pytest.approx(expected), kinds
