"""How the losses of a step's task rows and general rows add up in GeRe, and the weight of what it adds to them.

Source: arXiv:2508.04676 and its authors' code. CE is a mean over answer tokens, TM the threshold-margin loss.
"""

from __future__ import annotations

from typing import Literal

EPSILON = 1e-8
"""Added to the TM value that a dynamic weight is divided by."""


def shares(task: int, general: int, rule: str) -> tuple[float, float]:
    """Factors of the task loss and of the general loss in a step of so many task and general rows.

    ``halves``: a half each where both are there, whatever the counts (the authors' rule for one micro-batch). ``rows``: by
    number of rows (what the authors' code amounts to at one row per micro-batch). ``sum``: 1 and 1. One alone counts fully.
    """
    if rule == "sum" or not task or not general:
        return float(task > 0), float(general > 0)
    if rule == "halves":
        return 0.5, 0.5
    return task / (task + general), general / (task + general)


def combined(task: float | None, general: float | None) -> float:
    """``CE`` of one micro-batch: of the part that is there, or the mean of both."""
    present = [value for value in (task, general) if value is not None]
    return sum(present) / len(present)


def dynamic_weight(ce: float, margin: float, limit: float) -> float:
    """``min(CE / (L_TM + 1e-8), limit)``: makes the TM term as large as CE, but not without bound."""
    return min(ce / (margin + EPSILON), limit)


class LossWeight:
    """Factor w of the added loss: a number, or `dynamic_weight` of the step before."""

    def __init__(self, given: float | Literal["dynamic"], limit: float) -> None:
        self._given, self._limit = given, limit
        self.last: float | None = None
        """The dynamic weight of the coming step; None until one was derived."""

    @property
    def now(self) -> float:
        """The factor in this step; 1 while no dynamic weight was derived."""
        if self._given != "dynamic":
            return float(self._given)
        return 1.0 if self.last is None else self.last

    def follow(self, ce: float, margin: float) -> None:
        """Derive the coming step's weight from this step's CE and TM.

        A first weight at the limit is not taken: at the base nothing is violated but by rounding, and the limit would hit
        the first real violations.
        """
        weight = dynamic_weight(ce, margin, self._limit)
        if self.last is not None or weight < self._limit:
            self.last = weight
