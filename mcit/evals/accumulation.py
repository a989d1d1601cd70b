"""Knowledge accumulation over a stream in which concepts come back (SCoLe: Lesort et al., "Challenging Common Assumptions about
Catastrophic Forgetting and Knowledge Accumulation", CoLLAs 2023, arXiv:2207.04543).

KA(n) is the accuracy over the union of all concepts after stage n, those not yet seen included. Pure Python; what was not
measured is None, never 0. Splitting a curve into gains, losses and residue is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Cell = float | None


def accumulated(accuracies: Mapping[str, Cell], rows: Mapping[str, int]) -> Cell:
    """KA after one stage: accuracies of all concepts weighted by their test rows; None where one is missing."""
    if not accuracies or any(value is None for value in accuracies.values()):
        return None
    total = sum(rows[concept] for concept in accuracies)
    return sum(value * rows[concept] for concept, value in accuracies.items() if value is not None) / total


def area(curve: Sequence[Cell]) -> Cell:
    """Area under the curve over its length; None where a point is missing."""
    known = [value for value in curve if value is not None]
    return sum(known) / len(known) if known and len(known) == len(curve) else None


@dataclass(frozen=True)
class Visits:
    """What the visits of one concept brought; lists by visit."""

    gains: list[Cell]
    """Accuracy after the visit minus before it."""
    losses: list[Cell]
    """Accuracy after the visit minus before the next one; one fewer."""
    residue: list[Cell]
    """Accuracy before the visit minus before the first one: what survives of earlier visits."""


def visits(before: Sequence[Cell], after: Sequence[Cell]) -> Visits:
    """From accuracies before and after each visit, in order. Raises ValueError for lists of different lengths."""
    gains = [_minus(b, a) for a, b in zip(before, after, strict=True)]
    losses = [_minus(a, b) for a, b in zip(after, before[1:], strict=False)]
    return Visits(gains, losses, [_minus(value, before[0]) for value in before])


def residue(every: Sequence[Visits], visit: int) -> Cell:
    """Mean over the concepts that had this visit (from 1) and were measured; None if none was."""
    found = [v.residue[visit - 1] for v in every if len(v.residue) >= visit]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _minus(a: Cell, b: Cell) -> Cell:
    return None if a is None or b is None else a - b
