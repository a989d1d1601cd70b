"""What a stage did on three slices, from answers and scores before and after it: no model needed.

Target: what the stage trains. Neighbourhood: rows that are like it and should stay as they are. Retention: earlier tasks and
what else is to be kept. The layered measures follow the survey "Memory in large language models" (arXiv:2509.18868, chapters 4
and 5); intervals are Wilson's for shares and a paired bootstrap for drops, both of 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.evals.inference import holm, paired_interval, relative_interval, sign_flip, wilson
from mcit.evals.predictions import PREDICTIONS, read_predictions
from mcit.evals.score import read_rows


@dataclass(frozen=True)
class Measure:
    """A number with its interval, in the unit that its name says."""

    estimate: float
    interval: list[float] | None
    n: int
    """Rows it is from."""


@dataclass(frozen=True)
class SliceReport:
    """All measures of a stage; None is what was not measured. Shares in [0, 1]."""

    success: Measure | None = None
    """Accuracy on the target after the stage."""
    generalisation: Measure | None = None
    """Accuracy on target rows asked in other words."""
    locality: Measure | None = None
    """Share of neighbourhood rows whose answer is the same text as before the stage."""
    drawdown_points: Measure | None = None
    """Drop of the accuracy over all retention rows, in points of 100."""
    drawdown_relative: Measure | None = None
    """The same drop in percent of the accuracy before."""
    retention: list[JsonDict] = field(default_factory=list)
    """Per retention task: scores before and after, drop with interval in points, p and p after Holm's correction."""

    def json(self) -> JsonDict:
        """As reports have it."""
        return asdict(self)


def slice_report(before: Path, after: Path, stage: Mapping[str, Any], *, mode: str) -> SliceReport:
    """Measures of a stage by the folders of scores before and after it.

    `stage` names its ``tasks``, and its ``neighbourhood``, ``rephrased`` and ``retention`` tasks. Raises StateError for
    damaged scores.
    """
    points, relative, retention = drawdown(before, after, stage["retention"], mode=mode)
    return SliceReport(
        accuracy(after, stage["tasks"], mode=mode),
        accuracy(after, stage["rephrased"], mode=mode),
        locality(before, after, stage["neighbourhood"]),
        points,
        relative,
        retention,
    )


def accuracy(folder: Path, tasks: Sequence[str], *, mode: str) -> Measure | None:
    """Over all rows of some tasks; None where one was not scored, or there is none."""
    values: list[float] = []
    for task in tasks:
        rows = read_rows(folder / task)
        if rows is None:
            return None
        values += rows[mode]
    return share(sum(values), len(values)) if values else None


def share(hits: float, n: int) -> Measure:
    """A share with Wilson's interval."""
    return Measure(hits / n, wilson(hits, n), n)


def locality(before: Path, after: Path, tasks: Sequence[str]) -> Measure | None:
    """Share of rows answered with the same text; None where answers are missing or of other rows."""
    same = count = 0
    for task in tasks:
        if not all((folder / task / PREDICTIONS).is_file() for folder in (before, after)):
            return None
        then, now = ({p["id"]: p["text"] for p in read_predictions(folder / task)} for folder in (before, after))
        if then.keys() != now.keys():
            return None
        same += sum(then[row] == now[row] for row in then)
        count += len(then)
    return share(same, count) if count else None


def drawdown(
    before: Path, after: Path, tasks: Sequence[str], *, mode: str
) -> tuple[Measure | None, Measure | None, list[JsonDict]]:
    """Drop over all rows of some tasks in points and relative, and the entry of each task."""
    then_all: list[float] = []
    now_all: list[float] = []
    ids_all: list[str] = []
    entries: list[JsonDict] = []
    for task in tasks:
        then, now = read_rows(before / task), read_rows(after / task)
        if then is None or now is None or then["id"] != now["id"]:
            continue
        a, b, ids = then[mode], now[mode], [f"{task}/{row}" for row in then["id"]]
        entries.append(
            {
                "task": task,
                "before": 100 * sum(a) / len(a),
                "after": 100 * sum(b) / len(b),
                "interval": [100 * v for v in paired_interval(a, b, ids)],
                "p": sign_flip(a, b, ids),
            }
        )
        then_all, now_all, ids_all = then_all + a, now_all + b, ids_all + ids
    for entry, adjusted in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
        entry["p_holm"] = adjusted
    if not ids_all or len(entries) < len(tasks):
        return None, None, entries
    return *drops(then_all, now_all, ids_all), entries


def drops(before: Sequence[float], after: Sequence[float], ids: Sequence[str]) -> tuple[Measure, Measure | None]:
    """Drop of a mean in points of 100, and in percent of the mean before (None where that is 0 in some resample)."""
    n, then, now = len(ids), sum(before) / len(ids), sum(after) / len(ids)
    points = Measure(100 * (then - now), [100 * v for v in paired_interval(before, after, ids)], n)
    span = relative_interval(before, after, ids)
    return points, None if span is None else Measure(100 * (then - now) / then, [100 * v for v in span], n)
