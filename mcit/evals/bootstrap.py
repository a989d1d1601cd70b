"""Bootstrap intervals over questions.

Which questions a resample holds depends on the ids of the questions alone. So all cells of a task, in any stage or run,
are resampled alike, and differences between them (forgetting) get the narrow interval that paired data deserve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcit.core.files import digest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 95.0


def resampled_means(
    cells: Sequence[Sequence[float]], ids: Sequence[str], *, resamples: int = RESAMPLES
) -> NDArray[Any]:
    """Means of several cells over the same questions in each resample, in their unit; shape (cells, resamples)."""
    import numpy as np

    # RandomState's stream is frozen by numpy's policy; that of Generator may change between versions.
    state = np.random.RandomState(int(digest_of(list(ids))[:8], 16))
    data = np.asarray(cells, dtype=np.float64)
    out = np.empty((len(cells), resamples))
    for k in range(resamples):
        out[:, k] = data[:, state.randint(0, len(ids), len(ids))].mean(axis=1)
    return out


def percentile_interval(means: Sequence[float] | NDArray[Any]) -> list[float]:
    """The central 95 % of resampled values: [low, high]."""
    import numpy as np

    tail = (100.0 - LEVEL) / 2
    low, high = np.percentile(np.asarray(means, dtype=np.float64), [tail, 100.0 - tail])
    return [float(low), float(high)]


def interval(values: Sequence[float], ids: Sequence[str], *, resamples: int = RESAMPLES) -> list[float] | None:
    """Interval of the mean of `values`; None without questions."""
    return percentile_interval(resampled_means([values], ids, resamples=resamples)[0]) if len(values) else None
