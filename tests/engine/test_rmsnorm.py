"""RMS norms as one function against transformers' own."""

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mcit.engine.rmsnorm import lengthen, shorten


def norm(width=24, trains=True):
    made = LlamaRMSNorm(width, eps=1e-5)
    made.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    made.weight.requires_grad_(trains)
    return made


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 24), (7, 24)])
def test_values_and_gradients(shape, trains):
    draw, made = torch.Generator().manual_seed(1), norm(trains=trains)
    x = torch.randn(shape, generator=draw).requires_grad_()
    weight = torch.randn(shape, generator=draw)
    given = [x, made.weight] if trains else [x]
    own = made(x)
    wanted = torch.autograd.grad((own * weight).sum(), given)
    (short,) = shorten(nn.Sequential(made))
    assert "_Norm" in type(made(x).grad_fn).__name__
    assert torch.allclose(made(x), own, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad((made(x) * weight).sum(), given), wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    lengthen([short])
    assert "forward" not in vars(made)


def test_a_row_of_zeros_has_a_finite_gradient():
    made, x = norm(), torch.zeros(1, 24, requires_grad=True)
    shorten(made)
    (gradient,) = torch.autograd.grad(made(x).sum(), x)
    assert torch.allclose(gradient, made.weight[None] / 1e-5**0.5, rtol=1e-5)


def test_without_a_gradient_and_in_half_precision_it_is_torchs_own():
    made, x = norm(trains=False), torch.randn(3, 24)
    own = made(x)
    shorten(made)
    assert torch.equal(made(x), own)
    assert "_Norm" not in type(made(x.bfloat16().requires_grad_()).grad_fn).__name__
    with torch.no_grad():
        assert torch.equal(made(x.requires_grad_()), own)


def test_other_norms_are_left_alone():
    """Gemma multiplies by 1 + w, a LayerNorm takes the mean away; bf16 weights are not looked at."""
    other = nn.ModuleList([GemmaRMSNorm(24), nn.LayerNorm(24), norm().bfloat16(), nn.Linear(24, 24)])
    assert shorten(other) == []
