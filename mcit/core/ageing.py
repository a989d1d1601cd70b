"""Forgetting by age: which entries of a memory, or rows of a replay buffer, go first. Pure Python.

The weight is that of HEMA (arXiv:2504.16754): ``lambda exp(-gamma age) + beta (1 - delta)`` with lambda 1, gamma 0.002,
beta 0.5, delta being 1 for what was recalled lately. Its text says that beta rewards recent recall, its formula rewards the
others; `favours` is the sign: ``recalled`` as the text has it, ``unrecalled`` as the formula has it. A relevance takes the
place of lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Literal

Favours = Literal["recalled", "unrecalled"]


def age_weight(age: float, *, relevance: float = 1.0, tau: float) -> float:
    """``relevance * exp(-age / tau)``, both in one unit of time; gamma is ``1 / tau``. What weighs least goes first."""
    return relevance * exp(-age / tau)


def recall_bonus(recent: bool, *, beta: float, favours: Favours) -> float:
    """What is added to the weight of an entry that was recalled lately, or was not."""
    return beta if recent == (favours == "recalled") else 0.0


def lightest(weights: Sequence[float], count: int) -> list[int]:
    """Places of the `count` lowest weights, in order; of equal ones the earlier go."""
    return sorted(sorted(range(len(weights)), key=lambda place: (weights[place], place))[: max(0, count)])
