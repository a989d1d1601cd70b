"""A step context for calling method hooks by hand."""

import contextlib
from types import SimpleNamespace

import torch

from mcit.core.types import Batch, ModelOutput, Row, Turn, WeightUnit


def unit(name="m", *, shape=(2, 3), scale=1.0):
    return WeightUnit(name, "lora", {"A": f"{name}.lora_A", "B": f"{name}.lora_B"}, shape, scale)


def context(*, index=2, reference=None, num_units=1, seed=5, rows=(), weights=None, again=False):
    stage = SimpleNamespace(index=index, name="s", seed=seed, tasks=())
    logged = {}
    data = SimpleNamespace(
        stages=(),
        stage_rows=lambda: list(rows),
        rows=lambda task, split="train": [r for r in rows if r.task == task],
        without_forgotten=lambda kept, known=(): list(kept),
    )
    return SimpleNamespace(
        stage=stage,
        step=0,
        total_steps=1,
        num_units=num_units,
        seed=seed,
        again=again,
        weights=weights,
        data=data,
        reference=lambda batch: reference,
        log=logged.__setitem__,
        logged=logged,
    )


def output(logits_NV, targets):
    targets_N = torch.tensor(targets)
    nll_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return ModelOutput(logits_NV, targets_N, torch.zeros_like(targets_N), nll_N, real_rows=(0,))


def batch(stream="task", *, tokens=2):
    row = Row("r", (), (Turn("user", "q"), Turn("assistant", "a")), "t", "t.json:1")
    empty = torch.zeros(1, 1, dtype=torch.long)
    return Batch(stream, (row,), empty, empty, empty, {}, tokens)


def rows(task, n):
    return [
        Row(f"{task}{i}", (), (Turn("user", "q"), Turn("assistant", "a")), task, f"{task}.json:{i}") for i in range(n)
    ]


class Weights:
    """The tensors of one unit, moved by hand."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def units(self, kind=None):
        return [unit()]

    @contextlib.contextmanager
    def gathered(self, _unit):
        yield {role: tensor.clone() for role, tensor in self.tensors.items()}

    @contextlib.contextmanager
    def edit(self, _unit):
        yield self.tensors


class Gradients:
    """Gradients of one unit."""

    def __init__(self, **by_role):
        self.by_role = by_role

    def units(self, kind=None):
        return [unit()]

    def full(self, _unit):
        return self.by_role
