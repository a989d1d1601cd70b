"""Rotary positions as one function against transformers' own."""

import functools
from types import ModuleType

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from mcit.engine import rotary
from mcit.engine.rotary import shorten_rotation


@pytest.fixture
def own():
    """transformers' function, whatever stands in its place by now."""
    there = modeling_llama.apply_rotary_pos_emb
    return there.args[0] if isinstance(there, functools.partial) else there


def numbers(grad=True):
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 8, generator=draw, requires_grad=grad) for heads in (4, 2))
    angles = torch.randn(1, 5, 8, generator=draw)
    return q, k, angles.cos(), angles.sin()


def test_values_and_gradients(own):
    q, k, cos, sin = numbers()
    results = [own(q, k, cos, sin), rotary._rotated(own, q, k, cos, sin)]
    assert "_Turn" in type(results[1][0].grad_fn).__name__
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in (q, k)]
    gradients = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(r, weights, strict=True)), [q, k]) for r in results
    ]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    for theirs, mine in zip(*gradients, strict=True):
        assert torch.allclose(theirs, mine, atol=1e-6)


def test_what_is_handed_over(own):
    """No gradient wanted, another precision, another dimension of heads, fewer angles than numbers."""

    def marked(*args, **kwargs):
        return "own"

    q, k, cos, sin = numbers()
    assert rotary._rotated(marked, *numbers(grad=False)) == "own"
    assert rotary._rotated(marked, *(x.bfloat16() for x in (q, k, cos, sin))) == "own"
    assert rotary._rotated(marked, q, k, cos, sin, unsqueeze_dim=2) == "own"
    assert rotary._rotated(marked, q, k, cos[..., :4], sin[..., :4]) == "own"
    with torch.no_grad():
        assert rotary._rotated(marked, q, k, cos, sin) == "own"


def test_only_the_usual_function_is_replaced_and_once(own, monkeypatch):
    made = ModuleType("some_modeling")
    monkeypatch.setitem(__import__("sys").modules, "some_modeling", made)
    attention = type("SomeAttention", (nn.Module,), {"__module__": "some_modeling"})

    def interleaved(q, k, cos, sin):
        return own(q.flip(-1), k, cos, sin)

    made.apply_rotary_pos_emb = interleaved
    shorten_rotation(nn.Sequential(attention()))
    assert made.apply_rotary_pos_emb is interleaved
    made.apply_rotary_pos_emb = own
    shorten_rotation(nn.Sequential(attention(), nn.Linear(2, 2, device="meta")))
    assert made.apply_rotary_pos_emb is own
    for _ in range(2):
        shorten_rotation(nn.Sequential(attention()))
    assert made.apply_rotary_pos_emb.args == (own,)
