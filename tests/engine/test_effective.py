import pytest
import torch
from torch import nn

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit
from mcit.engine.effective import Traces, effective


class Pair(nn.Module):
    """y = (W + 2 B A) x."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), requires_grad=False)
        self.A = nn.Parameter(torch.tensor([[1.0, 2.0]]))
        self.B = nn.Parameter(torch.tensor([[1.0], [0.0], [-1.0]]))

    def forward(self, x):
        return x @ (self.W + 2 * self.B @ self.A).T


UNIT = WeightUnit("0", "lora", {"A": "0.A", "B": "0.B"}, (3, 2), 2.0)


def test_the_gradient_of_the_whole_matrix_by_hand():
    """L = sum(c * y) over two positions: G = c1 x1^T + c2 x2^T = [[1, 2], [3, 4], [0, 0]] twice and added."""
    model = nn.Sequential(Pair())
    traces = Traces(model, [UNIT])
    with traces.kept():
        x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        c = torch.tensor([[1.0, 3.0, 0.0], [2.0, 4.0, 0.0]])
        for _ in range(2):
            (model(x) * c).sum().backward()
    G = torch.tensor([[2.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
    assert torch.equal(traces.of(UNIT), G)
    assert torch.equal(model[0].B.grad, 2 * G @ model[0].A.T) and torch.equal(model[0].A.grad, 2 * model[0].B.T @ G)
    with torch.no_grad():
        model(x)
    (model(x) * c).sum().backward()  # outside the block nothing is kept
    assert torch.equal(traces.of(UNIT), G)


def test_nothing_kept_is_zero_or_refused():
    traces = Traces(nn.Sequential(Pair()), [UNIT])
    assert torch.equal(traces.of(UNIT), torch.zeros(3, 2))
    with pytest.raises(TrainingError, match="no gradient of an effective weight"):
        effective(None, None, UNIT)
