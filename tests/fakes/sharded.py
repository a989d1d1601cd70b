"""An engine on which every parameter is an empty tensor outside the engine's own windows, as under ZeRO-3.

A method or a loop that touches a parameter by itself fails here, on a laptop.
"""

import contextlib

import torch
from torch import nn

from mcit.engine.gradients import HeldGradients, LocalGradients, LocalWeights
from mcit.engine.plain import PlainEngine


class _Windowed:
    """Calls every method of `inner` inside the engine's window."""

    def __init__(self, inner, window):
        self._inner, self._window = inner, window

    def units(self, kind=None):
        return self._inner.units(kind)


class WindowedWeights(_Windowed):
    @contextlib.contextmanager
    def gathered(self, unit):
        with self._window(), self._inner.gathered(unit) as tensors:
            copies = dict(tensors)
        yield copies

    @contextlib.contextmanager
    def edit(self, unit):
        with self.gathered(unit) as copies:
            yield copies
        with self._window(), self._inner.edit(unit) as tensors:
            for role, value in copies.items():
                tensors[role].copy_(value)

    def forget_moments(self, unit):
        with self._window():
            self._inner.forget_moments(unit)

    def local(self):
        with self._window():
            return {name: tensor.clone() for name, tensor in self._inner.local().items()}


class WindowedGradients(_Windowed):
    def full(self, unit):
        with self._window():
            return self._inner.full(unit)

    def replace(self, unit, role, gradient):
        with self._window():
            self._inner.replace(unit, role, gradient)

    def scale(self, unit, factor):
        with self._window():
            self._inner.scale(unit, factor)

    def freeze(self, unit, role, mask):
        with self._window():
            self._inner.freeze(unit, role, mask)

    def effective(self, unit):
        with self._window():
            return self._inner.effective(unit)


class ShardedEngine(PlainEngine):
    """PlainEngine whose model is empty between windows."""

    def __init__(self, model, spec):
        super().__init__(model, spec)
        self._every = dict(model.named_parameters())
        self._full = {}
        self._grads = {}
        self._depth = 0
        self.windows = 0
        self.weights = WindowedWeights(LocalWeights(self._named, self._units, self._optimizer.state), self._window)
        self._hide()

    def _hide(self):
        for name, parameter in self._every.items():
            self._full[name] = parameter.data
            self._grads[name] = parameter.grad
            parameter.grad = None
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    @contextlib.contextmanager
    def _window(self):
        if self._depth == 0:
            self.windows += 1
            for name, parameter in self._every.items():
                parameter.data = self._full[name]
                parameter.grad = self._grads[name]
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._hide()

    @contextlib.contextmanager
    def answering(self):
        with self._window(), super().answering() as (model, _):
            yield model, True

    def finish(self):
        super().finish()
        self.show()

    def show(self):
        """Give the model its parameters back for good, as an engine does when a stage ends."""
        for name, parameter in self._every.items():
            parameter.data = self._full[name]
            parameter.grad = None

    @contextlib.contextmanager
    def micro_batch(self, *, last):
        with self._window():
            yield

    def forward(self, batch, needs=frozenset()):
        with self._window():
            return super().forward(batch, needs)

    def _add_gradient(self, name, gradient):
        with self._window():
            super()._add_gradient(name, gradient)

    def take(self):
        with self._window():
            held = super().take()
            shown = {name: nn.Parameter(torch.empty_like(p), requires_grad=False) for name, p in self._named.items()}
        return HeldGradients(held.parts, shown)

    def add(self, held, factor=1.0):
        with self._window():
            super().add(held, factor)

    def _snapshot(self):
        with self._window():
            return super()._snapshot()

    def _put_back(self, kept):
        with self._window():
            super()._put_back(kept)

    def part(self, name):
        with self._window():
            return super().part(name).clone()

    def shapes(self):
        with self._window():
            return super().shapes()

    def part_gradients(self, names):
        with self._window():
            return super().part_gradients(names)

    def put_parts(self, parts):
        with self._window():
            super().put_parts(parts)

    def gradients(self):
        if self._gradients is None:
            self._gradients = LocalGradients(self._named, self._units, self._traces)
        return WindowedGradients(self._gradients, self._window)

    def step(self):
        with self._window():
            super().step()

    def discard(self):
        if not hasattr(self, "_every"):
            return super().discard()
        with self._window():
            super().discard()

    def rehearse(self, batch):
        with self._window():
            super().rehearse(batch)

    def reference(self, batch, needs=frozenset()):
        with self._window():
            return super().reference(batch, needs)

    def save(self, folder):
        with self._window():
            super().save(folder)

    def load(self, folder):
        with self._window():
            super().load(folder)

    def moments(self):
        with self._window():
            return super().moments()

    def take_over(self, moments):
        with self._window():
            super().take_over(moments)
