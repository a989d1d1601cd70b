"""The score matrix of a run, put together from its score files each time; never stored as the only copy.

Scores are in percent. Row j of a matrix is after stage j and as long as there are tasks seen by then (longer if unseen
tasks were scored too); what was not measured is null. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcit.core.errors import StateError
from mcit.core.records import CombinationRecord, Score
from mcit.core.stored import read_sealed
from mcit.core.types import JsonDict
from mcit.evals.bootstrap import percentile_interval, resampled_means
from mcit.evals.continual import METRICS, Cell, ScoreMatrix, average, lost, metrics
from mcit.evals.predictions import PREDICTIONS
from mcit.evals.score import SCORE, kappa, read_rows, read_score
from mcit.report.accumulation import accumulation
from mcit.runs.gates import standing_of
from mcit.runs.layout import COMBINATION, RunLayout
from mcit.runs.lock import RunLock
from mcit.runs.run import read_plan as plan_of

BASE = 0
"""Number of the row before the first stage."""


@dataclass(frozen=True)
class Measured:
    """What lies under ``evals/``, by (row, task): row 0 is the base, row k the k-th stage that was not rejected."""

    tasks: tuple[str, ...]
    stages: tuple[JsonDict, ...]
    """``index``, ``name``, ``folder``, ``tasks`` of each stage that was not rejected, from the plan."""
    scores: Mapping[tuple[int, str], JsonDict]
    rows: Mapping[tuple[int, str], JsonDict]

    def number(self, row: int) -> int:
        """The stage's own number in the run."""
        return int(self.stages[row - 1]["index"]) if row else 0

    @property
    def first(self) -> list[int]:
        """Row (from 0) in which each task is trained for the first time."""
        return [next(j for j, stage in enumerate(self.stages) if task in stage["tasks"]) for task in self.tasks]

    def ragged(self, value: Callable[[JsonDict], Any]) -> list[list[Any]]:
        """A matrix of something that every score holds."""
        out, seen = [], set[str]()
        for j, stage in enumerate(self.stages, 1):
            seen |= set(stage["tasks"])
            cells = [self.of(j, task, value) for task in self.tasks]
            known = [i for i, task in enumerate(self.tasks) if task in seen or cells[i] is not None]
            out.append(cells[: known[-1] + 1 if known else 0])
        return out

    def of(self, row: int, task: str, value: Callable[[JsonDict], Any]) -> Any:
        """Something of one score; None if it was not measured."""
        score = self.scores.get((row, task))
        return None if score is None else value(score)

    def base(self, value: Callable[[JsonDict], Any]) -> list[Any]:
        """The row before the first stage."""
        return [self.of(BASE, task, value) for task in self.tasks]


def read_plan(run: Path) -> JsonDict:
    """``plan.json`` of a run folder. Raises StateError if it is none, or if it was edited."""
    layout = RunLayout(run)
    if not layout.plan.is_file():
        raise StateError("is not a run folder: it holds no plan.json", where=str(run), fix="give the folder of a run")
    return plan_of(layout)


def measure(run: Path) -> Measured:
    """Read the plan and every finished score of a run, one that is being written included.

    Raises StateError for a damaged file, or for answers without a score that nobody is about to write.
    """
    plan, layout = read_plan(run), RunLayout(run)
    scores: dict[tuple[int, str], JsonDict] = {}
    rows: dict[tuple[int, str], JsonDict] = {}
    writer = RunLock(layout.lock).holder()
    written = writer is not None and writer["pid"] != os.getpid()  # between answers and their score
    stages = tuple(standing_of(layout, plan["stages"]))
    tasks = tuple(task for task in plan["tasks"] if any(task in stage["tasks"] for stage in stages))
    for row, number in enumerate([0, *(stage["index"] for stage in stages)]):
        for task in tasks:
            folder = layout.evals(number) / task
            score = read_score(folder)
            if score is None and (folder / PREDICTIONS).is_file() and not written:
                what = "the answers have no score: it is lost, or the run was killed before it was written"
                raise StateError(what, where=str(folder / SCORE), fix=Score.fix)
            if score is not None:
                scores[row, task] = score
                found = read_rows(folder)
                if found is not None:
                    rows[row, task] = found
    return Measured(tasks, stages, scores, rows)


def read_matrix(run: Path, *, mode: str | None = None) -> JsonDict:
    """Matrix, metrics with intervals, and what goes with them, under one scorer mode (default: the run's own).

    Raises StateError if `run` is no run folder or a score file is damaged.
    """
    run = Path(run)
    mode = mode or read_plan(run)["scorer_mode"]
    found = measure(run)
    matrix = found.ragged(lambda s: s[mode]["accuracy"])
    base = found.base(lambda s: s[mode]["accuracy"])
    scores = ScoreMatrix.of(matrix, first=found.first, base=base)
    constant = _constants(found, mode)
    return {
        "name": run.resolve().name,
        "tasks": list(found.tasks),
        "stages": [stage["folder"] for stage in found.stages],
        "first": [j + 1 for j in found.first],
        "base": base,
        "constant": constant,
        "matrix": matrix,
        "kappa": [[_kappa(cell, constant[i]) for i, cell in enumerate(row)] for row in matrix],
        "format_validity": found.ragged(lambda s: s["format_validity"]),
        "base_format_validity": found.base(lambda s: s["format_validity"]),
        "accuracy_on_valid": found.ragged(lambda s: s[mode]["accuracy_on_valid"]),
        "lenient_minus_strict": found.ragged(lambda s: s["lenient_minus_strict"]),
        "truncation_rate": found.ragged(lambda s: s["truncation_rate"]),
        "mean_length": found.ragged(lambda s: s["mean_length"]),
        **_answered(found),
        "n": found.ragged(lambda s: s["n"]),
        "metrics": {**metrics(scores), "average": [average(scores, j) for j in range(len(matrix))]},
        "intervals": {
            "matrix": found.ragged(lambda s: s[mode]["interval"]),
            "format_validity": found.ragged(lambda s: s["format_validity_interval"]),
            "metrics": metric_intervals(found, mode),
        },
        "forgetting_kinds": forgetting_kinds(found, mode),
        "accumulation": accumulation(found, mode),
        "combined": combined(run, found.tasks, mode),
        "filters": sorted({name for score in found.scores.values() for name in score["filters"]}),
        "scorer_mode": mode,
        "scale": "percent",
    }


Table = tuple[list[str], list[list[str | float | None]]]
"""Head and rows; the first cell of each is its name."""


def matrix_table(run: Path) -> Table:
    """Head and rows of the accuracy matrix so far, for trackers; rows are filled up, the base first if it was scored.

    Raises StateError as `read_matrix` does.
    """
    mode, found = read_plan(run)["scorer_mode"], measure(run)
    rows: list[list[str | float | None]] = []
    for row, name in enumerate(["base", *(stage["folder"] for stage in found.stages)]):
        cells = [found.of(row, task, lambda s: s[mode]["accuracy"]) for task in found.tasks]
        if any(cell is not None for cell in cells):
            rows.append([name, *cells])
    return ["after", *found.tasks], rows


def combined(run: Path, tasks: Sequence[str], mode: str) -> list[JsonDict]:
    """Accuracies of combined adapters, which are beside the matrix: no stage has these weights."""
    layout, out = RunLayout(run), []
    for folder in sorted(p for p in layout.combinations.glob("*") if (p / COMBINATION).is_file()):
        record = read_sealed(folder / COMBINATION, CombinationRecord)
        scores = {task: read_score(folder / task) for task in tasks}
        cells = [None if (score := scores[task]) is None else score[mode]["accuracy"] for task in tasks]
        out.append({"name": folder.name, **record, "scores": cells})
    return out


def _answered(found: Measured) -> JsonDict:
    """Answers that were chosen among options, where a run lets that be."""
    if not any("answered" in score for score in found.scores.values()):
        return {}
    return {"chosen": found.ragged(lambda s: s.get("answered", {}).get("chosen"))}


def _kappa(cell: Cell, constant: Cell) -> Cell:
    return None if cell is None or constant is None else kappa(cell, constant)


def _constants(found: Measured, mode: str) -> list[Cell]:
    """Accuracy of the best constant answer per task, from its newest score."""
    newest: dict[str, Cell] = dict.fromkeys(found.tasks)
    for (_, task), score in sorted(found.scores.items()):
        newest[task] = score[mode]["constant"]
    return list(newest.values())


def metric_intervals(found: Measured, mode: str) -> dict[str, list[float] | None]:
    """Bootstrap interval of every metric over questions; None where the metric is, or where results per row are gone."""
    samples = metric_samples(found, mode)
    return {name: percentile_interval(values) if values else None for name, values in samples.items()}


def metric_samples(found: Measured, mode: str) -> dict[str, list[float]]:
    """Every metric in each resample of the questions; empty where it is not defined or results per row are gone.

    The questions of a task are resampled alike in all rows of the matrix, and in all runs that asked them.
    """
    means: dict[tuple[int, int], Any] = {}
    for i, task in enumerate(found.tasks):
        by_ids: dict[tuple[str, ...], list[int]] = {}
        for row in range(len(found.stages) + 1):
            if (row, task) in found.rows:
                by_ids.setdefault(tuple(found.rows[row, task]["id"]), []).append(row)
        for ids, rows in by_ids.items():
            sampled = 100.0 * resampled_means([found.rows[row, task][mode] for row in rows], ids)
            means.update({(row, i): values for row, values in zip(rows, sampled, strict=True)})
    samples: dict[str, list[float]] = {name: [] for name in METRICS}
    for k in range(len(next(iter(means.values()), ()))):
        cells = {key: float(values[k]) for key, values in means.items()}
        grid = [[cells.get((row, i)) for i in range(len(found.tasks))] for row in range(len(found.stages) + 1)]
        for name, value in metrics(ScoreMatrix.of(grid[1:], first=found.first, base=grid[0])).items():
            if value is not None:
                samples[name].append(value)
    return samples


def forgetting_kinds(found: Measured, mode: str) -> JsonDict:
    """Superficial and essential forgetting per task, and their means over tasks trained before the last stage."""
    last, per_task = len(found.stages), {}
    for task, first in zip(found.tasks, found.first, strict=True):
        then, now = found.rows.get((first + 1, task)), found.rows.get((last, task))
        kinds = None
        if then is not None and now is not None and then["id"] == now["id"]:
            kinds = lost(then[mode], now[mode], now["valid"])
        per_task[task] = {
            "superficial": kinds.superficial if kinds else None,
            "essential": kinds.essential if kinds else None,
        }
    earlier = [task for task, first in zip(found.tasks, found.first, strict=True) if first < last - 1]

    def mean(kind: str) -> Cell:
        values = [value for task in earlier if (value := per_task[task][kind]) is not None]
        return sum(values) / len(values) if values and len(values) == len(earlier) else None

    return {"tasks": per_task, "mean": {"superficial": mean("superficial"), "essential": mean("essential")}}
