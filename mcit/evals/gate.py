"""Thresholds against measures: pass, fail or inconclusive by the conservative bound; and alarms inside a stage.

A share passes where the lower bound of its interval does, a drop where the upper one does; where only the estimate passes more
rows are needed, and the stage is not promoted. The rule is ours; pre-registered thresholds, monitoring, rollback and audit are
the pillars of arXiv:2509.18868, chapter 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.evals.score import read_rows
from mcit.evals.slices import Measure, accuracy, drawdown, locality, share

SCALE = {"share": 1.0, "percent": 100.0}
"""What a share is multiplied by in a unit."""


def threshold_tasks(threshold: Mapping[str, Any], slices: Mapping[str, Sequence[str]]) -> list[str]:
    """Tasks whose scores a threshold reads; `slices` has ``tasks``, ``neighbourhood``, ``rephrased``, ``retention``."""
    if threshold["task"]:
        return [threshold["task"]]
    named = {"success": "tasks", "generalisation": "rephrased", "locality": "neighbourhood", "drawdown": "retention"}
    return list(slices[named[threshold["metric"]]])


def measured(
    threshold: Mapping[str, Any], slices: Mapping[str, Sequence[str]], before: Path, after: Path, *, mode: str
) -> Measure | None:
    """What a threshold is about, in its unit; None if it was not measured. Raises StateError for damaged scores."""
    tasks, metric, unit = threshold_tasks(threshold, slices), threshold["metric"], threshold["unit"]
    if metric == "drawdown":
        points, relative, _ = drawdown(before, after, tasks, mode=mode)
        return points if unit == "points" else relative
    if metric == "locality":
        found = locality(before, after, tasks)
    elif metric == "format_validity":
        rows = [read_rows(after / task) for task in tasks]
        valid = [value for some in rows if some is not None for value in some["valid"]]
        found = share(sum(valid), len(valid)) if valid and None not in rows else None
    else:
        found = accuracy(after, tasks, mode=mode)
    if found is None or found.interval is None:
        return None
    factor = SCALE[unit]
    return Measure(factor * found.estimate, [factor * bound for bound in found.interval], found.n)


def judged(threshold: Mapping[str, Any], found: Measure | None) -> JsonDict:
    """The threshold with estimate, interval, rows and verdict."""
    values: JsonDict = {"estimate": None, "interval": None, "n": 0, "verdict": "not measured"}
    if found is not None:
        interval = found.interval or [found.estimate, found.estimate]
        values = {"estimate": found.estimate, "interval": interval, "n": found.n}
        values["verdict"] = verdict(threshold, found.estimate, interval)
    return {key: threshold[key] for key in ("metric", "task", "unit", "at_least", "at_most", "first")} | values


def verdict(threshold: Mapping[str, Any], estimate: float, interval: Sequence[float]) -> str:
    """``pass``, ``fail`` or ``inconclusive`` by the bound on the threshold's wrong side."""
    low, high = interval
    least, most = threshold["at_least"], threshold["at_most"]
    if least is not None:
        return "pass" if low >= least else "inconclusive" if estimate >= least else "fail"
    return "pass" if high <= most else "inconclusive" if estimate <= most else "fail"


def overall(results: Sequence[Mapping[str, Any]]) -> str:
    """``fail`` where one fails, ``pass`` where all pass, else ``inconclusive``."""
    verdicts = {result["verdict"] for result in results}
    return "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "inconclusive"


def alarm(monitor: Sequence[Mapping[str, Any]], lines: Sequence[JsonDict], current: frozenset[str]) -> str:
    """Which limit the probe ``stability`` shows to be crossed inside a stage, in words; empty if none.

    ``min_acc``: mean over earlier tasks of their lowest accuracy since the first update of the stage. ``drawdown``: what their
    mean accuracy lost since before it.
    """
    accuracies = [
        {task: entry["accuracy"] for task, entry in line["values"]["tasks"].items() if task not in current}
        for line in lines
        if "values" in line
    ]
    if len(accuracies) < 2 or not accuracies[0]:
        return ""
    start, now = (sum(found.values()) / len(found) for found in (accuracies[0], accuracies[-1]))
    lowest = {task: min(found[task] for found in accuracies[1:]) for task in accuracies[0]}
    for limit in monitor:
        unit = limit["unit"]
        if limit["metric"] == "min_acc":
            value = SCALE[unit] * sum(lowest.values()) / len(lowest)
            crossed = value < limit["at_least"]
        else:
            value = 100 * (start - now) / (1 if unit == "points" or not start else start)
            crossed = value > limit["at_most"]
        if crossed:
            bound = limit["at_least"] if limit["at_least"] is not None else limit["at_most"]
            return f"gate: {limit['metric']} is {value:.3f}, the limit is {bound:g} {unit}"
    return ""
