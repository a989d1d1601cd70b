"""Intervals and tests for comparisons of shares and scores. Pure Python and numpy.

Wilson's interval (Wilson, JASA 1927), paired sign-flip permutation, paired bootstrap, Holm's step-down correction
(Holm, Scandinavian Journal of Statistics 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from mcit.core.files import digest_of
from mcit.evals.bootstrap import percentile_interval, resampled_means

Z = 1.959963984540054
"""Of a normal distribution's central 95 %."""
FLIPS = 9999
"""Random assignments of signs."""


def wilson(hits: float, n: int) -> list[float]:
    """95 % interval of a share of `n`; `hits` may be a sum of values in [0, 1]. Raises ValueError without any."""
    if n < 1:
        raise ValueError("a share of nothing")
    p, z2 = hits / n, Z * Z
    centre, half = p + z2 / (2 * n), Z * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return [max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))]


def paired_interval(before: Sequence[float], after: Sequence[float], ids: Sequence[str]) -> list[float]:
    """95 % bootstrap interval of the mean of ``before - after`` over the same rows."""
    a, b = resampled_means([before, after], ids)
    return percentile_interval(a - b)


def relative_interval(before: Sequence[float], after: Sequence[float], ids: Sequence[str]) -> list[float] | None:
    """The same of ``(before - after) / before`` of the means; None where a resample has nothing before."""
    a, b = resampled_means([before, after], ids)
    return percentile_interval((a - b) / a) if (a > 0).all() else None


def sign_flip(before: Sequence[float], after: Sequence[float], ids: Sequence[str]) -> float:
    """Two-sided p of the mean difference of pairs under random signs; the observed assignment counts as one of them."""
    import numpy as np

    difference = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    seen = abs(difference.mean()) if len(difference) else 0.0
    moved = difference[difference != 0]
    if not len(moved):
        return 1.0
    draw = np.random.RandomState(int(digest_of(["flip", *ids])[:8], 16))
    signs = 2.0 * draw.randint(0, 2, (FLIPS, len(moved))) - 1.0
    means = np.abs(signs @ moved) / len(difference)
    return float((1 + (means >= seen - 1e-12).sum()) / (FLIPS + 1))


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = sorted(range(len(values)), key=lambda k: values[k])
    out, least = [0.0] * len(values), 0.0
    for place, k in enumerate(order):
        least = max(least, min(1.0, (len(values) - place) * values[k]))
        out[k] = least
    return out
