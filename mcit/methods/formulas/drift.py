"""How far modules moved, and which of them are chosen for it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def mean_drift(now: Tensor, before: Tensor) -> Tensor:
    """``|w - w0|_1 / |w|``: the mean absolute change of a tensor's numbers, a scalar."""
    return (now - before).abs().mean()


def most_moved(drift: Mapping[str, float], sizes: Mapping[str, int], share: float) -> list[str]:
    """Names from the largest drift on, as long as they hold at most `share` of all numbers together; at least one, sorted."""
    chosen: list[str] = []
    left = share * sum(sizes.values())
    for name in sorted(drift, key=lambda name: (-drift[name], name)):
        if chosen and sizes[name] > left:
            break
        chosen.append(name)
        left -= sizes[name]
    return sorted(chosen)


def due(steps: int, every: int) -> bool:
    """Whether fine-tuning follows after so many steps of the run."""
    return every > 0 and steps > 0 and steps % every == 0
