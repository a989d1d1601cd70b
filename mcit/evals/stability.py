"""Stability metrics from accuracies measured while stages train (De Lange, van de Ven and Tuytelaars, "Continual evaluation for
lifelong learning: identifying the stability gap", ICLR 2023, arXiv:2205.13452, section 3 and appendix).

A(i, n) is the accuracy on fixed rows of task i after n optimiser steps of the run, in [0, 1]; a window holds w evaluations,
not steps. Pure Python; what is not defined is None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from mcit.core.types import JsonDict

WINDOWS = (10, 100)
"""Sizes w of the paper's runs."""
FIRST = 10
"""Evaluations of a stage that LCA averages."""


@dataclass(frozen=True)
class Evaluation:
    """One measurement of the run."""

    step: int
    """Optimiser steps of the whole run so far."""
    stage: int
    """From 1."""
    current: frozenset[str]
    """Tasks that this stage trains."""
    accuracy: Mapping[str, float]
    """Of every task seen so far."""


def windowed_fall(values: Sequence[float], w: int) -> float:
    """Largest A(a) - A(b) with a before b within w consecutive evaluations; at least 0."""
    return max(0.0, max((values[a] - values[b] for a, b in _pairs(len(values), w)), default=0.0))


def windowed_rise(values: Sequence[float], w: int, *, authors_compat: bool = False) -> float:
    """Largest A(b) - A(a) with a before b within w consecutive evaluations; at least 0.

    The released code only lets a window's running maxima be a (it shares the loop with the fall): `authors_compat`.
    """
    if not authors_compat:
        return max(0.0, max((values[b] - values[a] for a, b in _pairs(len(values), w)), default=0.0))
    best = 0.0
    for start in range(max(1, len(values) - w + 1)):
        window, top = values[start : start + w], float("-inf")
        for a, value in enumerate(window):
            if value >= top:
                top = value
                best = max([best, *(later - value for later in window[a + 1 :])])
    return best


def _pairs(count: int, w: int) -> Iterator[tuple[int, int]]:
    """Places a < b that some window of w consecutive ones holds."""
    return ((a, b) for a in range(count) for b in range(a + 1, min(count, a + w)))


def ends(evaluations: Sequence[Evaluation]) -> dict[str, int]:
    """Step at which the stage ended that trained a task first; none of the stage that is still the last one."""
    out: dict[str, int] = {}
    for stage in sorted({e.stage for e in evaluations})[:-1]:
        mine = [e for e in evaluations if e.stage == stage]
        out.update({task: mine[-1].step for task in mine[-1].current if task not in out})
    return out


def lowest(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Of each task that the last stage does not train: its lowest accuracy since its own stage, while it was not trained."""
    if not evaluations:
        return {}
    out: dict[str, float] = {}
    for task, end in ends(evaluations).items():
        later = [e.accuracy[task] for e in evaluations if e.step > end and task not in e.current and task in e.accuracy]
        if later and task not in evaluations[-1].current:
            out[task] = min(later)
    return out


def min_acc(evaluations: Sequence[Evaluation]) -> float | None:
    """Mean over earlier tasks of their lowest accuracy since their stage; None while there is no earlier task."""
    return _mean(list(lowest(evaluations).values()))


def wc_acc(evaluations: Sequence[Evaluation]) -> float | None:
    """Mean over the tasks seen of the present accuracy of those being trained and of the lowest one of the others."""
    if not evaluations:
        return None
    low, last = lowest(evaluations), evaluations[-1]
    known = {task: value if task in last.current else low.get(task) for task, value in last.accuracy.items()}
    values = [value for value in known.values() if value is not None]
    return _mean(values) if len(values) == len(known) else None


def acc(evaluations: Sequence[Evaluation]) -> float | None:
    """Mean accuracy over the tasks seen, at the last evaluation."""
    return _mean(list(evaluations[-1].accuracy.values())) if evaluations else None


def forg(evaluations: Sequence[Evaluation]) -> float | None:
    """Mean over earlier tasks of the accuracy at the end of their stage minus the last one."""
    lost = []
    for task, end in ends(evaluations).items():
        then = [e.accuracy[task] for e in evaluations if e.step == end and task in e.accuracy]
        if then and task not in evaluations[-1].current:
            lost.append(then[0] - evaluations[-1].accuracy[task])
    return _mean(lost)


def series(evaluations: Sequence[Evaluation]) -> dict[str, list[float]]:
    """Accuracies of each task over the whole run, its own stage included."""
    out: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for task, value in evaluation.accuracy.items():
            out.setdefault(task, []).append(value)
    return out


def wf(evaluations: Sequence[Evaluation], w: int) -> float | None:
    """Windowed forgetting: mean over tasks of the largest fall within w evaluations."""
    return _mean([windowed_fall(values, w) for values in series(evaluations).values()])


def wp(evaluations: Sequence[Evaluation], w: int, *, authors_compat: bool = False) -> float | None:
    """Windowed plasticity: mean over tasks of the largest rise within w evaluations."""
    compat = authors_compat
    return _mean([windowed_rise(values, w, authors_compat=compat) for values in series(evaluations).values()])


def lca(evaluations: Sequence[Evaluation], first: int = FIRST) -> float | None:
    """Mean over stages of the mean accuracy of the tasks in training over a stage's first evaluations."""
    means = []
    for stage in sorted({e.stage for e in evaluations}):
        mine = [e for e in evaluations if e.stage == stage][:first]
        values = [_mean([v for task, v in e.accuracy.items() if task in e.current]) for e in mine]
        means.append(_mean([v for v in values if v is not None]))
    return _mean([m for m in means if m is not None])


def gaps(evaluations: Sequence[Evaluation]) -> list[JsonDict]:
    """Per stage and earlier task: accuracy before the first update, the lowest one after it and its step, and the last one."""
    out = []
    for stage in sorted({e.stage for e in evaluations}):
        mine = [e for e in evaluations if e.stage == stage]
        for task in mine[0].accuracy if len(mine) > 1 else ():
            if task in mine[0].current:
                continue
            values = [e.accuracy[task] for e in mine]
            low = min(values[1:])
            entry = {"stage": stage, "task": task, "start": values[0], "lowest": low, "end": values[-1]}
            at = mine[1 + values[1:].index(low)].step - mine[0].step
            out.append({**entry, "step": at, "drop": values[0] - low, "recovery": values[-1] - low})
    return out


def standard_error(accuracy: float, rows: int) -> float:
    """Of a share that was measured on so many rows."""
    return sqrt(accuracy * (1.0 - accuracy) / rows)


def stability_metrics(evaluations: Sequence[Evaluation]) -> JsonDict:
    """Every metric at the last evaluation, by name; WF and WP by their window."""
    return {
        "acc": acc(evaluations),
        "forg": forg(evaluations),
        "min_acc": min_acc(evaluations),
        "wc_acc": wc_acc(evaluations),
        "wf": {str(w): wf(evaluations, w) for w in WINDOWS},
        "wp": {str(w): wp(evaluations, w) for w in WINDOWS},
        "lca": lca(evaluations),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
