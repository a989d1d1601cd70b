import pytest
import torch

from mcit.methods.formulas.projection import projection_factor


@pytest.mark.parametrize(
    "g, r, expected",
    [
        ([1.0, 1.0], [-1.0, 0.0], [0.0, 1.0]),
        ([2.0, -1.0], [1.0, 3.0], [2.1, -0.7]),
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0], [1.0, 2.0]),
        ([1.0, 0.0], [0.0, 1.0], [1.0, 0.0]),
    ],
)
def test_projection_by_hand(g, r, expected):
    """g.r = -1 and r.r = 1: g + r; g.r = -1 and r.r = 10: g + r / 10; with r, with 0 and across r: unchanged."""
    g, r = torch.tensor(g, dtype=torch.float64), torch.tensor(r, dtype=torch.float64)
    projected = g + projection_factor(g @ r, r @ r) * r
    assert torch.allclose(projected, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert float(projected @ r) >= -1e-12
