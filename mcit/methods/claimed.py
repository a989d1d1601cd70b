"""What one method may do with a context: as it is, but writing weights needs a slot that says so."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from mcit.core.errors import PlanError
from mcit.core.interfaces import Weights
from mcit.core.types import WRITES, WeightUnit
from mcit.methods.base import Method


class ClaimedContext:
    """A step or stage context in the hands of one method."""

    def __init__(self, ctx: Any, method: Method) -> None:
        self.inner = ctx
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def weights(self) -> ClaimedWeights:
        """Whole tensors, one unit at a time; `edit` and `forget_moments` raise PlanError without a slot that writes."""
        return ClaimedWeights(self.inner.weights, self._method)

    def fine_tune(self, *args: Any, **settings: Any) -> list[float]:
        """`StepContext.fine_tune`. Raises PlanError without the slot weights:edit."""
        require(self._method, "fine-tunes", frozenset({"weights:edit"}))
        losses: list[float] = self.inner.fine_tune(*args, **settings)
        return losses


class ClaimedWeights:
    """`Weights` in the hands of one method."""

    def __init__(self, weights: Weights, method: Method) -> None:
        self._weights, self._method = weights, method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def edit(self, unit: WeightUnit) -> AbstractContextManager[dict[str, Tensor]]:
        """`Weights.edit`. Raises PlanError without a slot that writes."""
        require(self._method, "changes weights")
        return self._weights.edit(unit)

    def forget_moments(self, unit: WeightUnit) -> None:
        """`Weights.forget_moments`. Raises PlanError without a slot that writes."""
        require(self._method, "changes moments of the optimiser")
        self._weights.forget_moments(unit)


def require(method: Method, what: str, slots: frozenset[str] = WRITES) -> None:
    """Raise PlanError unless the method holds one of these slots."""
    if not method.claims.slots & slots:
        names = ", ".join(sorted(slots))
        raise PlanError(f"{what} without claiming it", where=method.name, fix=f"claim one of the slots {names}")
