"""What every engine owes the loop. One suite (tests/contracts/test_engines.py) runs over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mcit.core.interfaces import Gradients, Weights
from mcit.core.types import Batch, Counts, ModelOutput, WeightUnit

PenaltyFn = Callable[[WeightUnit, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Unit and its fp32 tensors by role -> penalty by method name."""


class Engine(Protocol):
    """Moves tensors; knows no method and no stage."""

    @property
    def weights(self) -> Weights:
        """Whole tensors, one unit at a time."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """The window of one forward and backward; gradients are reduced in the last one of a step."""

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Move the batch, run the model, keep logits only where a supervised token is predicted."""

    def backward(self, loss: Tensor, batch: Batch) -> None:
        """Add gradients. Never steps."""

    def target_counts(self, batches: Sequence[Batch]) -> Counts:
        """Supervised tokens and rows per stream over all ranks."""

    def add_penalties(self, penalty: PenaltyFn) -> dict[str, Tensor]:
        """Differentiate penalties unit by unit and add them to the gradients; returns their values by method."""

    def gradients(self) -> Gradients:
        """Reduced gradients, valid between backward and step."""

    def step(self) -> None:
        """Refuse non-finite loss or gradient, clip, update, schedule, clear. Raises TrainingError."""

    def discard(self) -> None:
        """Forget all gradients without a trace."""

    def reference(self, batch: Batch, needs: frozenset[str] = frozenset()) -> ModelOutput:
        """Outputs of the stage-start weights, without gradients."""

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward of the largest batch, then discard: an out-of-memory shows now."""

    def save(self, folder: Path) -> None:
        """Trained tensors, moments and step counts by parameter name, and the random state."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. Raises StateError if it is of another model."""

    def metrics(self) -> dict[str, float]:
        """loss, grad_norm, lr and tokens of the last step."""
