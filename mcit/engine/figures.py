"""Loss and norm of steps, on the device until somebody reads them: reading is what makes the host wait.

Steps may be read one by one or several together. Where they wait, a step whose loss or norm is not finite changes no weight
(the optimiser skips it, and all steps behind it, on the device), and reading raises what the step would have raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One step; what is a tensor may still be on its way."""

    step: int
    """From 1."""
    loss: Tensor
    norm: Tensor
    tokens: Tensor | int
    lr: float
    parts: tuple[tuple[Tensor, tuple[str, ...]], ...]
    """The loss of each pass with the places of its rows."""

    def bad_rows(self) -> tuple[list[str], list[str]]:
        """Rows of passes whose loss is not finite, and rows of all passes."""
        values = read([{str(k): value for k, (value, _) in enumerate(self.parts)}])[0]
        bad = [row for k, (_, rows) in enumerate(self.parts) for row in rows if not math.isfinite(values[str(k)])]
        return bad, [row for _, rows in self.parts for row in rows]


class Figures:
    """Steps in order: those that wait, those that were read and not handed out, and the last one."""

    def __init__(self, refuse: Callable[[StepFigures, str], None]) -> None:
        """`refuse` raises for a step whose ``loss`` or ``gradient`` is not finite."""
        self._refuse = refuse
        self._waiting: list[StepFigures] = []
        self._read: list[dict[str, float]] = []
        self.last: dict[str, float] = {}

    def add(self, step: StepFigures) -> None:
        """A step that was launched."""
        self._waiting.append(step)

    def settle(self) -> None:
        """Wait for what was launched. Raises what `refuse` raises for the first step that is not finite."""
        waiting, self._waiting = self._waiting, []
        values = read([{"loss": s.loss, "grad_norm": s.norm, "lr": s.lr, "tokens": s.tokens} for s in waiting])
        for step, found in zip(waiting, values, strict=True):
            for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
                if not math.isfinite(found[name]):
                    self._refuse(step, what)
            self.last = {**found, "tokens": int(found["tokens"])}
            self._read.append(self.last)

    def take(self) -> list[dict[str, float]]:
        """Figures of the steps since the last call, in order."""
        self.settle()
        out, self._read = self._read, []
        return out


def read(groups: Sequence[Mapping[str, Tensor | float]]) -> list[dict[str, float]]:
    """Scalars as numbers: the device is asked once for all that lie there."""
    asked = [value for group in groups for value in group.values() if isinstance(value, Tensor)]
    places: dict[torch.device, list[Tensor]] = {}
    for value in asked:
        places.setdefault(value.device, []).append(value.detach().double().reshape(()))
    found = {device: iter(torch.stack(values).tolist()) for device, values in places.items()}
    return [
        {n: next(found[v.device]) if isinstance(v, Tensor) else float(v) for n, v in group.items()} for group in groups
    ]
