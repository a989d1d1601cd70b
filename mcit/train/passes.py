"""The forward and backward passes of one optimiser step, in the hands of the method that holds the slot step:passes.

Without one there is a single pass over all micro-batches. Counts are those of the whole step, so that a pass gives the same
gradient however the step is cut; penalties, `before_step`, finite check and clipping come afterwards as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mcit.core.errors import TrainingError
from mcit.core.interfaces import Held, RowLoss
from mcit.core.profile import timed
from mcit.core.types import Batch, WeightUnit
from mcit.engine import world
from mcit.engine.base import Engine
from mcit.methods.compose import MethodSet
from mcit.train.context import Context
from mcit.train.objective import normalised, task_loss


class StepPasses:
    """Gradients of a step, pass by pass; implements `core.interfaces.StepPasses` on any engine."""

    def __init__(self, engine: Engine, methods: MethodSet, ctx: Context, batches: Sequence[Batch]) -> None:
        self._engine, self._methods, self._ctx, self._batches = engine, methods, ctx, batches
        self._counts = ctx.counts = engine.target_counts(batches)
        self.streams = tuple(dict.fromkeys(batch.stream for batch in batches))
        self.shares: dict[str, Tensor] = {}
        """Each method's share of the loss, of the first pass over each stream."""
        self._done: set[str] = set()
        self._some = False

    def run(self) -> None:
        """All passes of the step. Raises TrainingError when they leave no gradient."""
        self._methods.passes(self, self._ctx)
        if not self._some:
            raise self._error("the passes of the step left no gradient", "let passes end with accumulate() or add()")

    def _error(self, what: str, fix: str) -> TrainingError:
        return TrainingError(what, where=f"stage {self._ctx.stage.name}, step {self._ctx.step + 1}", fix=fix)

    def accumulate(self, streams: Collection[str] | None = None, *, loss: RowLoss | None = None) -> None:
        """Forward and backward over the step's micro-batches of some streams (all of them), added to what is there.

        The loss is the step's own, all methods' terms included, or `loss`. Raises TrainingError for an unknown stream.
        """
        unknown = set(streams or ()) - set(self.streams)
        if unknown:
            raise self._error(f"there is no stream '{sorted(unknown)[0]}' in this step", f"streams: {self.streams}")
        batches = [batch for batch in self._batches if streams is None or batch.stream in streams]
        before = self.take() if self._some else None
        self._engine.begin_pass()
        for i, batch in enumerate(batches):
            with self._engine.micro_batch(last=i == len(batches) - 1):
                self._pass(batch, loss)
            self._ctx.next_batch()
        if loss is None:
            self._done |= {batch.stream for batch in batches}
        self._some = bool(batches)
        if before is not None:
            self.add(before)

    def _pass(self, batch: Batch, loss: RowLoss | None) -> None:
        with timed("language forward"):
            out = self._engine.forward(batch, self._methods.needs)
        again = self._ctx.again = batch.stream in self._done
        if loss is not None:
            with timed("methods"):
                whole = normalised(loss(out, batch), out, batch, self._counts)
            with timed("backward"):
                self._engine.backward(whole, batch, shown=False)
            return
        value = task_loss(out, batch, self._counts, replaced=self._methods.replaces_task_loss)
        with timed("methods"):
            extra, parts = self._methods.loss_terms(out, batch, self._counts, self._ctx)
        with timed("backward"):
            self._engine.backward(value if extra is None else value + extra, batch, shown=not again)
        for name, part in parts.items() if not again else ():
            self.shares[f"loss/{name}"] = self.shares.get(f"loss/{name}", 0.0) + part

    def take(self) -> Held:
        """Hand out what was accumulated and clear it. Raises TrainingError when there is nothing."""
        if not self._some:
            raise self._error("take() without an accumulate() or add() before it", "accumulate() first")
        self._some = False
        return self._engine.take()

    def add(self, held: Held, factor: float | Tensor = 1.0) -> None:
        """Add ``factor * held`` to the gradients."""
        self._some = True
        self._engine.add(held, factor)

    def dot(self, a: Held, b: Held) -> Tensor:
        """The inner product over all trained tensors, fp64, without waiting for the device."""
        return self._engine.dot(a, b)

    def norm(self, held: Held) -> Tensor:
        """The Euclidean norm over all trained tensors, fp64."""
        return self.dot(held, held).sqrt()

    def moved(self, fn: Callable[[WeightUnit, dict[str, Tensor]], None]) -> AbstractContextManager[None]:
        """A block in which `fn` has changed the fp32 tensors of every unit in place; afterwards they are bit for bit back."""
        return self._engine.moved(fn)


def over_ranks(shares: Mapping[str, Tensor], names: Sequence[str], *, device: torch.device) -> dict[str, Tensor]:
    """Each method's share of the loss summed over ranks; a rank on which it gave none adds nothing."""
    if world.size() == 1 or not names:
        return dict(shares)
    values = torch.zeros(len(names), dtype=torch.float64, device=device)
    for place, name in enumerate(names):
        if name in shares:
            values[place] = shares[name]
    return {n: v for n, v in zip(names, world.all_sum(values), strict=True) if n in shares}
