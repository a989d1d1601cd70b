"""Rows of a pool of general samples with states of a base, by hand: what tests of GeRe compute with."""

from types import SimpleNamespace

import torch

from mcit.core.types import Batch, Counts, ModelOutput
from mcit.methods.formulas.margin import states
from tests.fakes.rows import row

HIGH, LOW = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[-1.0, -2.0, -0.5]])
REFERENCE = torch.tensor([[1.5, -0.3, -0.9], [0.2, 2.0, 0.1]])
CURRENT = torch.tensor([[0.4, 0.5, -0.2], [1.3, 2.5, -0.8]])


class StoredStates:
    """The oracle's states in a blob, under row ``r`` (both positions) or rows ``r0``, ``r1`` (one each)."""

    def __init__(self):
        self.index = {"rows": {"r": [0, 2, 0], "r0": [0, 1, 0], "r1": [1, 2, 0]}, "types": ["text"]}
        self.tensors = {"states": states(REFERENCE, HIGH[0], LOW[0]), "high": HIGH, "low": LOW, "hidden": REFERENCE}

    def get(self, name):
        return self.tensors[name]

    def rows(self, name, start, stop):
        return self.tensors[name][start:stop]


def step_context(counts=None, blob=None, again=False):
    logged = {}
    return SimpleNamespace(
        stage=SimpleNamespace(index=1, name="s"),
        counts=counts or Counts({"task": 10, "gere": 4}, {"task": 5, "gere": 1}),
        again=again,
        base={"sha256": "b", "dtype": "fp32"},
        data=SimpleNamespace(pool_digest=lambda recipe: "p", pool=lambda recipe: []),
        blob=lambda name, fingerprint, build: blob or StoredStates(),
        all_sum=lambda tensor: tensor,
        log=logged.__setitem__,
        logged=logged,
    )


def general_batch(*ids, current=CURRENT, stream="gere", supervised=True):
    """One row of both positions, or two of one each; every row has one supervised token."""
    length = 2 // len(ids)
    ones = torch.ones(len(ids), length + 1, dtype=torch.int64)
    labels = ones * (1 if supervised else -100)
    hidden = torch.zeros(len(ids), length + 1, 3)
    hidden[:, :length] = current.view(len(ids), length, 3)
    attention = ones.clone()
    attention[:, length:] = 0
    batch = Batch(stream, tuple(row("q", "a", id=i) for i in ids), ones, labels, attention, {}, len(ids))
    nll = torch.full((4,), 3.2, requires_grad=True)
    return batch, ModelOutput(torch.zeros(4, 2), ones[0, :1], torch.zeros(4).long(), nll, {"last": hidden})
