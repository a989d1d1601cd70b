import pytest
import torch

from mcit.methods.formulas import fisher
from mcit.methods.formulas.fisher import anchor_distance, update_distance


def test_anchor_by_hand():
    """w (1, 2, -1), anchor (.5, 2.5, -1), F (4, .5, 10): 4 * .25 + .5 * .25 + 0 = 1.125; gradient 2 F (w - w*)."""
    now = torch.tensor([1.0, 2, -1], requires_grad=True)
    value = anchor_distance(now, torch.tensor([0.5, 2.5, -1]), torch.tensor([4.0, 0.5, 10]))
    value.backward()
    assert value.item() == pytest.approx(1.125) and (10 * now.grad).tolist() == [40, -5, 0]


@pytest.mark.parametrize("tile", [1, 7, 1 << 18])
def test_gradients_of_the_effective_form_are_those_of_autograd_with_any_tile(monkeypatch, tile):
    monkeypatch.setattr(fisher, "_TILE", tile)
    generator = torch.Generator().manual_seed(2)
    shapes = ((5, 2), (2, 3), (5, 2), (2, 3))
    b, a, b0, a0 = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    importance = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    b.requires_grad_(), a.requires_grad_()
    mine = torch.autograd.grad(3 * update_distance(b, a, b0, a0, importance, 1.5), (b, a))
    plain = torch.autograd.grad(3 * anchor_distance(1.5 * (b @ a), 1.5 * (b0 @ a0), importance), (b, a))
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_effective_form_is_the_plain_one_of_the_product():
    generator = torch.Generator().manual_seed(1)
    b, a, b0, a0 = (torch.randn(*s, generator=generator) for s in ((4, 2), (2, 3), (4, 2), (2, 3)))
    importance = torch.rand(4, 3, generator=generator)
    whole = anchor_distance(1.5 * (b @ a), 1.5 * (b0 @ a0), importance)
    assert update_distance(b, a, b0, a0, importance, 1.5).item() == pytest.approx(whole.item(), rel=1e-5)
