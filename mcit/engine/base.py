"""What every engine owes the loop. One suite (tests/contracts/test_engines.py) runs over all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from mcit.core.interfaces import Gradients, Held, Weights
from mcit.core.schema import OptimConfig
from mcit.core.types import Batch, Counts, ModelOutput, WeightUnit
from mcit.engine.checkpoint import Moments
from mcit.engine.tuner import Tuner

PenaltyFn = Callable[[WeightUnit, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Unit and its fp32 tensors by role -> penalty by method name."""

EVERY_TENSOR = frozenset({"lora", "tensor"})
"""Kinds of units that together are every trained tensor once."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from besides the model."""

    units: Sequence[WeightUnit]
    optim: OptimConfig
    total_steps: int
    where: str = "stage"
    """Names the stage in messages."""
    bf16: bool = False
    """Run forward passes under bf16 autocast."""
    needs: frozenset[str] = frozenset()
    adapter_off: Callable[[], AbstractContextManager[None]] | None = None
    """Set when switching the adapter off gives the stage-start weights (a fresh adapter)."""
    is_projector: Callable[[str], bool] = field(default=lambda name: False)
    checkpointing: bool = False
    is_vision: Callable[[str], bool] = field(default=lambda name: False)
    """Whether a parameter acts on images only, so that a step without images leaves it alone."""
    with_ghost: Callable[[Batch], Batch] | None = None
    """Adds an unsupervised row with an image to a batch that has none: sharded engines run the same modules on every rank."""
    read_every: int = 1
    """Steps whose figures are read together, where the optimiser can skip an update on the device; see `Engine.read`."""
    seed: int = 0
    """Source of the random state of a rank that a checkpoint knows nothing of."""


class Trials(Protocol):
    """Trials that an equal model passed on equal rows."""

    def known(self, name: str) -> bool:
        """Whether the trial of this name was passed."""

    def keep(self, name: str) -> None:
        """It was passed."""


class Engine(Protocol):
    """Moves tensors; knows no method and no stage."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know about how the engine was restored."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def weights(self) -> Weights:
        """Whole tensors, one unit at a time."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """The window of one forward and backward; gradients are reduced in the last one of a step."""

    def quiet(self) -> AbstractContextManager[None]:
        """A block without dropout: what is computed in it draws no random number."""

    def answering(self) -> AbstractContextManager[tuple[nn.Module, bool]]:
        """A block to generate in: the model, and whether every rank has to run the same passes because weights are sharded."""

    def traced(self) -> AbstractContextManager[None]:
        """A block after whose forward and backward pass `gradients` has those of effective weights, until `discard`."""

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Move the batch, run the model, keep logits only where a supervised token is predicted."""

    def use_packs(self, probe: Batch, passed: Trials | None = None) -> None:
        """Lay rows out without padding and shared pictures once, in every pass from here on, if the model gives the same
        outputs of `probe` so; if not, a note says why. Outputs stay those of rows. Every rank calls it alike.

        What was `passed` before is not tried again.
        """

    def backward(self, loss: Tensor, batch: Batch, *, shown: bool = True) -> None:
        """Add gradients, summed over ranks in the last window of a pass. Never steps.

        Only a loss that is `shown` is part of the step's metrics; tokens of a batch count once.
        """

    def begin_pass(self) -> None:
        """Before the first window of a pass; what an earlier one left was taken."""

    def take(self) -> Held:
        """Hand out the gradients and clear them, between the last window and the step; losses stay remembered."""

    def add(self, held: Held, factor: float | Tensor = 1.0) -> None:
        """Add ``factor * held`` to the gradients."""

    def dot(self, a: Held, b: Held) -> Tensor:
        """Inner product over all trained tensors and ranks, fp64."""

    def moved(self, fn: Callable[[WeightUnit, dict[str, Tensor]], None]) -> AbstractContextManager[None]:
        """A block in which `fn` has changed every unit's tensors; afterwards weights are bit for bit what they were."""

    def tuner(self, names: Collection[str], optim: OptimConfig) -> Tuner:
        """A fresh optimiser over some of the trained tensors, for passes outside steps."""

    def total_loss(self) -> Tensor:
        """Loss of the passes since the last `discard`, over all ranks."""

    def target_counts(self, batches: Sequence[Batch]) -> Counts:
        """Supervised tokens and rows per stream over all ranks."""

    def add_penalties(self, penalty: PenaltyFn, kinds: frozenset[str] = EVERY_TENSOR) -> dict[str, Tensor]:
        """Differentiate penalties over units of these kinds and add them to the gradients; returns values by method."""

    def gradients(self) -> Gradients:
        """Reduced gradients, valid between backward and step."""

    def step(self) -> None:
        """Refuse non-finite loss or gradient, clip, update, schedule, clear. Raises TrainingError, or leaves it to `read`."""

    def discard(self) -> None:
        """Forget all gradients without a trace."""

    def reference(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Outputs of the stage-start weights, without gradients or dropout."""

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward of the largest batch, then discard: an out-of-memory shows now."""

    def save(self, folder: Path) -> None:
        """Trained tensors, moments and step counts by parameter name, and the random state."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. Raises StateError if it is of another model."""

    def moments(self) -> Moments:
        """What the optimiser holds, whole tensors on rank 0; every rank calls it."""

    def take_over(self, moments: Moments) -> None:
        """Begin with the moments of the stage before; parameters that it did not train begin anew.

        Raises StateError for moments of another kind of optimiser, or of tensors of other shapes.
        """

    def metrics(self) -> dict[str, float]:
        """loss, grad_norm, lr and tokens of the last step, over all ranks."""

    def read(self) -> list[dict[str, float]]:
        """The same of every step since the last call, in order; raises TrainingError as `step` where that did not wait."""

    def finish(self) -> None:
        """End of the stage: whole fp32 weights in the model of every rank, wrappers and hooks gone. Called once, last."""
