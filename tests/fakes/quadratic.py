"""A step on a loss with a known gradient: passes, moves and held gradients over one unit with tensors x and y."""

import contextlib
from types import SimpleNamespace

import torch

from mcit.core.types import WeightUnit

UNIT = WeightUnit("m", "lora", {"x": "m.x", "y": "m.y"}, (1, 1))


class Held:
    def __init__(self, parts):
        self.parts = parts

    def full(self, unit):
        return {role: part.clone() for role, part in self.parts.items()}


class Step:
    """`gradient` maps (x, y) to their gradients for stream ``forget``; that of ``task`` is `rest`."""

    def __init__(self, gradient, at, *, rest=(0.0, 0.0), streams=("task", "forget")):
        self.gradient, self.streams = gradient, streams
        self.rest = dict(zip("xy", torch.tensor(rest, dtype=torch.float64), strict=True))
        self.weights = dict(zip("xy", torch.tensor(at, dtype=torch.float64), strict=True))
        self.total, self.order = None, []

    def accumulate(self, streams=None, *, loss=None):
        streams = list(streams or self.streams)
        self.order.append(tuple(streams))
        for stream in streams:
            mine = (
                self.rest if stream == "task" else dict(zip("xy", self.gradient(*self.weights.values()), strict=True))
            )
            self.add(Held(mine))

    def take(self):
        held, self.total = Held(self.total), None
        return held

    def add(self, held, factor=1.0):
        scaled = {role: part * factor for role, part in held.parts.items()}
        self.total = scaled if self.total is None else {r: self.total[r] + scaled[r] for r in scaled}

    def dot(self, a, b):
        return sum(a.parts[r] * b.parts[r] for r in a.parts)

    def norm(self, held):
        return self.dot(held, held).sqrt()

    @contextlib.contextmanager
    def moved(self, fn):
        kept = {role: weight.clone() for role, weight in self.weights.items()}
        fn(UNIT, self.weights)
        try:
            yield
        finally:
            self.weights = kept

    @property
    def result(self):
        return [float(part) for part in self.total.values()]


def context(seed=1, step=0):
    logged = {}
    return SimpleNamespace(stage=SimpleNamespace(seed=seed), step=step, log=logged.__setitem__, logged=logged)
