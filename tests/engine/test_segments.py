"""Attention run by run against one dense mask over the whole pack."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mcit.engine import segments
from mcit.engine.pack import Run
from mcit.engine.segments import Segments, _flat

RUNS = {
    "plain": [Run(0, 5), Run(5, 9), Run(14, 8)],
    "one prefix": [Run(0, 12), Run(12, 4, 0, 12), Run(16, 7, 0, 12), Run(23, 7, 0, 12)],
    "two prefixes of unlike length": [
        Run(0, 12), Run(12, 4, 0, 12), Run(16, 4, 0, 12), Run(20, 10), Run(30, 4, 20, 10), Run(34, 1, 20, 10), Run(35, 6),
    ],
}  # fmt: skip


def allowed(runs):
    """(P, P) by the definition."""
    size = sum(run.length for run in runs)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for run in runs:
        own = slice(run.start, run.start + run.length)
        mask[own, own] = torch.ones(run.length, run.length, dtype=torch.bool).tril()
        mask[own, run.prefix : run.prefix + run.shared] = True
    return mask


@pytest.mark.parametrize("way", ["spans", "buckets"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("name", RUNS)
def test_runs_equal_a_dense_mask(name, heads, way):
    """Values and gradients, with as many heads of keys and with fewer."""
    runs, draw = RUNS[name], torch.Generator().manual_seed(0)
    size = sum(run.length for run in runs)
    q, k, v = (torch.randn(size, h, 8, generator=draw).requires_grad_() for h in (heads[0], heads[1], heads[1]))
    made = Segments(runs, torch.device("cpu"))
    made.spans = made.spans if way == "spans" else None
    out = made.attend(q, k, v, 0.3)
    wide = [x.repeat_interleave(heads[0] // heads[1], 1) for x in (k, v)]
    dense = scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, *wide)), attn_mask=allowed(runs), scale=0.3
    )[0].transpose(0, 1)
    assert torch.allclose(out, dense, atol=1e-6)
    weight = torch.randn(out.shape, generator=draw)
    for mine, theirs in zip(*(torch.autograd.grad((x * weight).sum(), [q, k, v]) for x in (out, dense)), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_the_keys_of_a_run_are_its_prefix_and_itself(name):
    """What a kernel for sequences of unlike length gets: a causal mask aligned to the end of the keys is a run's own."""
    runs = RUNS[name]
    flat, mask = _flat(runs, torch.device("cpu")), allowed(runs)
    assert flat.query_ends[-1] == len(mask) and flat.key_ends[-1] == len(flat.keys)
    for run, first, last in zip(runs, flat.key_ends.tolist(), flat.key_ends.tolist()[1:], strict=False):
        keys = flat.keys[first:last]
        for i in range(run.length):
            assert mask[run.start + i].nonzero().flatten().tolist() == keys[: len(keys) - run.length + i + 1].tolist()
    assert flat.longest == (max(r.length for r in runs), max(r.length + r.shared for r in runs))


def by_definition(query, key, value, query_ends, key_ends, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What FlashAttention's kernel for sequences of unlike length computes, sequence by sequence."""
    assert window_size == (-1, 0) and max_q == query_ends.diff().max() and max_k == key_ends.diff().max()
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    out = []
    for q0, q1, k0, k1 in zip(query_ends, query_ends[1:], key_ends, key_ends[1:], strict=False):
        q, k, v = query[q0:q1], *(x[k0:k1].repeat_interleave(groups, 1) for x in (key, value))
        aligned = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out.append(scaled_dot_product_attention(q, k, v, attn_mask=aligned, scale=scale)[0].transpose(0, 1))
    return torch.cat(out)


def as_in_211(query, key, value, query_ends, key_ends, max_q, max_k, *, scale, window_size):
    """The same of torch 2.11, which has no grouped heads."""
    return by_definition(query, key, value, query_ends, key_ends, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("kernel", [by_definition, as_in_211])
@pytest.mark.parametrize("name", RUNS)
def test_sequences_of_unlike_length_equal_the_buckets(name, kernel, monkeypatch):
    """What is handed to a GPU's kernel, with the kernel written out."""
    runs, draw = RUNS[name], torch.Generator().manual_seed(0)
    size = sum(run.length for run in runs)
    q, k, v = (torch.randn(size, h, 8, generator=draw) for h in (6, 2, 2))
    made = Segments(runs, torch.device("cpu"))
    made.spans = None
    buckets = made.attend(q, k, v, 0.3)
    made.flat = _flat(runs, torch.device("cpu"))
    monkeypatch.setattr(segments, "varlen_attn", kernel)
    assert torch.allclose(made.attend(q, k, v, 0.3), buckets, atol=1e-6)
