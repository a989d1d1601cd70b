"""Groups of matrices under a group-sparse penalty: norms, the proximal step, pruning.

Formulas of GS-LoRA, arXiv:2403.11530: the penalty is the sum over groups of the Euclidean norm of all matrices of a group
taken together. The proximal step of ``a |theta|`` is the usual block soft threshold.

Shapes: O/I out/in features, R rank of one LoRA pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mcit.core.interfaces import Weights


def group_norm(tensors: Iterable[Tensor]) -> Tensor:
    """``sqrt(sum |M|_F^2)`` over matrices of any shapes; where it is 0 its gradient is 0, not NaN.

    A norm of norms: no copy of the matrices is made, and at a zero matrix torch takes the subgradient 0.
    """
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))


def shrink_factor(norm: float, threshold: float) -> float:
    """What the proximal step multiplies a group by: ``max(0, 1 - threshold / norm)``; 0 for a group that is 0."""
    return max(0.0, 1.0 - threshold / norm) if norm > 0 else 0.0


def size_weight(size: int, sizes: Iterable[int]) -> float:
    """``sqrt(p_g / mean p)``: what makes groups of unequal size pay alike per number."""
    every = list(sizes)
    return math.sqrt(size * len(every) / sum(every))


def stepped_alpha(alpha: float, *, step: int, batch: int, rows: int, from_epoch: float) -> float:
    """0 before `from_epoch`, `alpha` from then on: a step, no ramp.

    An epoch is one pass over the `rows` retained rows, of which a step (from 0) takes `batch`.
    """
    return alpha if step * batch >= from_epoch * rows else 0.0


def change_norm2(B_OR: Tensor, A_RI: Tensor, scale: float) -> Tensor:
    """``|scale B A|_F^2`` from Gram matrices, without forming the product."""
    return scale**2 * ((B_OR.T @ B_OR) * (A_RI @ A_RI.T)).sum()


def negligible(changes: Mapping[str, float], share: float) -> list[str]:
    """Groups whose change of the weights is below `share` of the largest one; sorted. Zeros always are."""
    if not changes:
        return []
    largest = max(changes.values())
    return sorted(name for name, norm in changes.items() if norm == 0 or norm < share * largest)


def group_sizes(weights: Weights, *, by_block: bool) -> dict[str, list[float]]:
    """Norm of A and B together, and of the change of the weights, by group: a decoder block, or one pair. Pairs only."""
    squares: dict[str, list[float]] = {}
    for unit in weights.units("lora"):
        with weights.gathered(unit) as tensors:
            whole = set(tensors) == {"A", "B"}
            change2 = float(change_norm2(tensors["B"], tensors["A"], unit.scale)) if whole else 0.0
            norm = float(group_norm(tensors.values()))
        entry = squares.setdefault(unit.block if by_block else unit.name, [0.0, 0.0])
        entry[0] += norm**2
        entry[1] += max(0.0, change2)
    return {name: [math.sqrt(a), math.sqrt(b)] for name, (a, b) in squares.items()}
