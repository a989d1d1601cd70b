"""Sums of a step."""

from types import SimpleNamespace

import torch

from mcit.methods.formulas.sums import StepSums


def test_batches_count_once_and_ranks_add_up():
    """1 + 2 of this rank, its second pass over them left out; another rank has the same; what nobody added is 0."""
    ctx = SimpleNamespace(again=False, all_sum=lambda tensor: 2 * tensor)
    sums = StepSums()
    assert sums.take(("a", "b"), ctx) is None
    for again in (False, True):
        ctx.again = again
        for value in (1.0, 2.0):
            sums.add("a", torch.tensor(value, requires_grad=True), ctx)
    found = sums.take(("a", "b"), ctx)
    assert found.tolist() == [6.0, 0.0] and found.dtype == torch.float64 and not found.requires_grad
    assert sums.take(("a", "b"), ctx) is None
