"""Score matrix to the numbers of continual learning.

A[j][i] is the score of task i (a column, in order of first appearance) after stage j (a row). f(i) is the stage in
which task i is trained for the first time: with one new task per stage f(i) = i and the formulas are the usual ones;
stages that train several tasks, or none, fit in without special cases. T tasks, S stages, E = tasks with f(i) < S
("earlier").

=================  =========================================================  ==========================================
mft                mean over i of A[f(i)][i]                                  right after learning
mfn                mean over i of A[S][i]                                     at the end ("Last")
average[j]         mean over tasks seen by stage j of A[j][i]
maa                mean over j of average[j]                                  "Avg"
bwt_all            1/T sum over i of A[S][i] - A[f(i)][i] = mfn - mft         convention of SEFE
bwt_earlier        the same sum over E, divided by its size                   convention of GEM, 1/(T-1)
forgetting         mean over E of max over f(i) <= k < S of A[k][i] - A[S][i]
fwt                mean over i with f(i) > 1 of A[f(i)-1][i] - base[i]        needs the upper triangle and the base
plasticity_gap     mean over i of single[i] - A[f(i)][i]                      needs single-task runs
retention          mfn / mft
=================  =========================================================  ==========================================

A cell that was not measured is None, and a metric that needs it is None, never 0. Pure Python, no rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Cell = float | None
METRICS = ("mft", "mfn", "maa", "bwt_all", "bwt_earlier", "forgetting", "fwt", "retention")
"""Metrics that need nothing but the matrix and the base row, in the order of reports."""


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores in percent. Rows may be shorter than there are tasks; what is missing is None."""

    rows: tuple[tuple[Cell, ...], ...]
    """Row j, from 0: after stage j + 1."""
    first: tuple[int, ...]
    """Row in which each task is trained for the first time."""
    base: tuple[Cell, ...] | None = None
    """Scores before the first stage."""

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[Cell]], *, first: Sequence[int] | None = None, base: Sequence[Cell] | None = None
    ) -> ScoreMatrix:
        """From lists; `first` is the diagonal when not given. Raises ValueError for a task first trained in no row."""
        first = tuple(range(len(rows))) if first is None else tuple(first)
        if any(not 0 <= j < len(rows) for j in first):
            raise ValueError("every task must be trained for the first time in one of the rows")
        return cls(tuple(map(tuple, rows)), first, None if base is None else tuple(base))

    def cell(self, row: int, task: int) -> Cell:
        """A score, or None where nothing was measured."""
        return self.rows[row][task] if task < len(self.rows[row]) else None

    def base_cell(self, task: int) -> Cell:
        """Score before the first stage, or None."""
        return self.base[task] if self.base is not None and task < len(self.base) else None

    @property
    def tasks(self) -> range:
        """Columns."""
        return range(len(self.first))

    @property
    def earlier(self) -> list[int]:
        """Tasks first trained before the last row."""
        return [i for i in self.tasks if self.first[i] < len(self.rows) - 1]


def _mean(values: Sequence[Cell]) -> Cell:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def _difference(a: Cell, b: Cell) -> Cell:
    return None if a is None or b is None else a - b


def mft(m: ScoreMatrix) -> Cell:
    """Mean score right after learning."""
    return _mean([m.cell(m.first[i], i) for i in m.tasks])


def mfn(m: ScoreMatrix) -> Cell:
    """Mean score after the last stage."""
    return _mean([m.cell(len(m.rows) - 1, i) for i in m.tasks])


def average(m: ScoreMatrix, row: int) -> Cell:
    """Mean score after a row over the tasks seen by then."""
    return _mean([m.cell(row, i) for i in m.tasks if m.first[i] <= row])


def maa(m: ScoreMatrix) -> Cell:
    """Mean over rows of `average`."""
    return _mean([average(m, row) for row in range(len(m.rows))])


def _gains(m: ScoreMatrix, tasks: Sequence[int]) -> list[Cell]:
    return [_difference(m.cell(len(m.rows) - 1, i), m.cell(m.first[i], i)) for i in tasks]


def bwt_all(m: ScoreMatrix) -> Cell:
    """Backward transfer divided by the number of all tasks."""
    return _mean(_gains(m, list(m.tasks)))


def bwt_earlier(m: ScoreMatrix) -> Cell:
    """Backward transfer divided by the number of earlier tasks; None if there is none."""
    return _mean(_gains(m, m.earlier))


def forgetting(m: ScoreMatrix) -> Cell:
    """Mean distance of earlier tasks from the best score they ever had before the last stage."""
    last = len(m.rows) - 1
    losses: list[Cell] = []
    for i in m.earlier:
        before = [m.cell(row, i) for row in range(m.first[i], last)]
        present = [value for value in before if value is not None]
        best = max(present) if len(present) == len(before) else None
        losses.append(_difference(best, m.cell(last, i)))
    return _mean(losses)


def fwt(m: ScoreMatrix) -> Cell:
    """Forward transfer: score just before a task is trained, against the base."""
    later = [i for i in m.tasks if m.first[i] > 0]
    return _mean([_difference(m.cell(m.first[i] - 1, i), m.base_cell(i)) for i in later])


def plasticity_gap(m: ScoreMatrix, single: Sequence[Cell]) -> Cell:
    """Mean distance of the score right after learning from that of a run on the task alone."""
    return _mean([_difference(single[i], m.cell(m.first[i], i)) for i in m.tasks])


def retention(m: ScoreMatrix) -> Cell:
    """Share of the score right after learning that is left at the end; None if that was 0."""
    start, end = mft(m), mfn(m)
    return None if start is None or end is None or start == 0 else end / start


_FUNCTIONS: Mapping[str, Callable[[ScoreMatrix], Cell]] = {
    "mft": mft,
    "mfn": mfn,
    "maa": maa,
    "bwt_all": bwt_all,
    "bwt_earlier": bwt_earlier,
    "forgetting": forgetting,
    "fwt": fwt,
    "retention": retention,
}


def metrics(m: ScoreMatrix) -> dict[str, Cell]:
    """All of `METRICS` by name."""
    return {name: _FUNCTIONS[name](m) for name in METRICS}


@dataclass(frozen=True)
class Lost:
    """Shares of a task's test rows in percent."""

    superficial: float
    """Answers in another form than the task's after the last stage."""
    essential: Cell
    """Answers in the right form that were right after learning and are wrong now, of those in the right form."""


def lost(right_then: Sequence[float], right_now: Sequence[float], valid_now: Sequence[float]) -> Lost | None:
    """Superficial and essential forgetting of one task, from results of 0 to 1 per row, in one order.

    With results between 0 and 1 the essential part is the mean drop. None without rows; the essential part is None when
    no answer has the right form. Raises ValueError for lists of different lengths.
    """
    triples = list(zip(right_then, right_now, valid_now, strict=True))
    if not triples:
        return None
    drops = [max(0.0, then - now) for then, now, valid in triples if valid]
    superficial = 100.0 * (len(triples) - len(drops)) / len(triples)
    return Lost(superficial, 100.0 * sum(drops) / len(drops) if drops else None)


def general_f1(general: float, task: float) -> float:
    """Harmonic mean of a general benchmark's score and of the average task score ("F1-Avg" of GeRe, arXiv:2508.04676)."""
    return 2.0 * general * task / (general + task) if general + task else 0.0
