"""How often methods make the host wait for the device in a step: ``float(tensor)``, ``tensor.item()``, ``if tensor``."""

import contextlib
import functools
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mcit.methods.compose import MethodSet

HOOKS = ("weight_penalty", "before_step", "after_step")
"""Those that go over every unit; a loss term may look at masks, which lie in host memory anyway."""


class _Counter(TorchDispatchMode):
    """Counts reads of a single value."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted():
    """The number of reads in the hooks of each step, as a list that grows while plans train in this block."""
    counter, steps = _Counter(), []

    def watched(name):
        inner = getattr(MethodSet, name)

        @functools.wraps(inner)
        def call(self, *args, **kwargs):
            with counter:
                out = inner(self, *args, **kwargs)
            if name == "after_step":
                steps.append(counter.count)
                counter.count = 0
            return out

        return call

    with contextlib.ExitStack() as stack:
        for name in HOOKS:
            stack.enter_context(mock.patch.object(MethodSet, name, watched(name)))
        yield steps
