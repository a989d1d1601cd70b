import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.methods.formulas.lowrank import product_distance2


def test_by_hand():
    """B A = [[2,-3,3],[-1,5,5.5]] (oracle O1 of the low-rank card); its squared norm is 4+9+9+1+25+30.25 = 78.25."""
    A, B = torch.tensor([[1.0, -2, 0.5], [0, 1, 2]]), torch.tensor([[2.0, 1], [-1, 3]])
    assert product_distance2(B, A, torch.zeros(2, 2), torch.zeros(2, 3)).item() == 78.25
    assert product_distance2(B, A, B, A).abs().item() < 1e-4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_equals_the_dense_product_and_its_gradient(seed):
    g = torch.Generator().manual_seed(seed)
    B, A, B0, A0 = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((5, 2), (2, 4), (5, 3), (3, 4)))
    B.requires_grad_(), A.requires_grad_()
    dense = ((B @ A - B0 @ A0) ** 2).sum()
    fast = product_distance2(B, A, B0, A0)
    assert torch.allclose(dense, fast, rtol=1e-9)
    for x, y in zip(torch.autograd.grad(dense, [B, A]), torch.autograd.grad(fast, [B, A]), strict=True):
        assert torch.allclose(x, y, rtol=1e-6, atol=1e-9)
