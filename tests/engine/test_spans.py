"""Slices of a pack; that they attend as a dense mask does: tests/engine/test_segments.py."""

import torch

from mcit.engine.pack import Run
from mcit.engine.segments import Segments
from mcit.engine.spans import Spans, takes
from tests.engine.test_segments import RUNS


def test_runs_of_a_prefix_are_one_slice():
    spans = Spans(RUNS["two prefixes of unlike length"])
    assert spans.own == [(0, 12), (12, 16), (16, 20), (20, 30), (30, 34), (34, 35), (35, 41)]
    assert spans.behind == [((12, 20), (0, 12)), ((30, 35), (20, 30))]
    apart = Spans([Run(0, 4), Run(4, 2, 0, 4), Run(6, 3), Run(9, 2, 0, 4)])
    assert apart.behind == [((4, 6), (0, 4)), ((9, 11), (0, 4))]


def test_runs_apart_from_each_other_share_a_prefix_too():
    """No pack is laid out so; the buckets say what comes out."""
    runs = [Run(0, 4), Run(4, 2, 0, 4), Run(6, 3), Run(9, 2, 0, 4)]
    made = Segments(runs, torch.device("cpu"))
    q, k, v = (torch.randn(11, h, 8, generator=torch.Generator().manual_seed(h)) for h in (4, 2, 2))
    out = made.attend(q, k, v, None)
    made.spans = None
    assert torch.allclose(out, made.attend(q, k, v, None), atol=1e-6)


def test_a_prefix_that_takes_everything_or_nothing_has_finite_gradients():
    """Scores far apart: the share of the prefix is 1 or 0 to the last bit."""
    for towards in (200.0, -200.0):
        q, k, v = (torch.ones(6, 1, 4) for _ in range(3))
        k[:4] *= towards
        given = [x.requires_grad_() for x in (q, k, v)]
        out = Segments([Run(0, 4), Run(4, 2, 0, 4)], torch.device("cpu")).attend(*given, None)
        assert torch.allclose(out, torch.ones_like(out))
        assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), given))


def test_a_gradient_of_any_layout():
    """Expanded, transposed and plain ones of the same values."""
    made, draw = Segments(RUNS["one prefix"], torch.device("cpu")), torch.Generator().manual_seed(0)
    given = [torch.randn(30, h, 8, generator=draw).requires_grad_() for h in (4, 2, 2)]
    out = made.attend(*given, None)
    like = torch.ones(()).expand(out.shape), torch.ones(8, 4, 30).permute(2, 1, 0), torch.ones(out.shape)
    found = [torch.autograd.grad(out, given, weight, retain_graph=True) for weight in like]
    assert all(torch.equal(a, b) for one in found[:2] for a, b in zip(one, found[2], strict=True))


def test_what_the_kernel_does_not_take_goes_by_buckets():
    q, k, v = (torch.randn(22, h, 8) for h in (4, 2, 2))
    assert takes(q, k, v) and not takes(q, k, v[..., :4]) and not takes(*(x.bfloat16() for x in (q, k, v)))
    made = Segments(RUNS["plain"], torch.device("cpu"))
    half = made.attend(*(x.bfloat16() for x in (q, k, v)), None)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), made.attend(q, k, v, None), atol=0.05)
    assert Segments(RUNS["plain"], torch.device("cpu"), half=True).spans is None
