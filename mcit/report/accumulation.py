"""Knowledge accumulation of a run whose tasks come back, from its score files. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcit.core.types import JsonDict
from mcit.evals.accumulation import Visits, accumulated, area, residue, visits

if TYPE_CHECKING:
    from mcit.report.matrix import Measured


def accumulation(found: Measured, mode: str) -> JsonDict | None:
    """Curve, area, visits of each task, and mean residue by visit; accuracies in percent. None where no task comes back."""
    where = {task: [k for k, stage in enumerate(found.stages, 1) if task in stage["tasks"]] for task in found.tasks}
    if all(len(stages) < 2 for stages in where.values()):
        return None

    def score(after: int, task: str) -> float | None:
        value: float | None = found.of(after, task, lambda s: s[mode]["accuracy"])
        return value

    sizes = {task: next((s["n"] for (_, t), s in sorted(found.scores.items()) if t == task), 0) for task in found.tasks}
    count = len(found.stages)
    curve = [accumulated({t: score(k, t) for t in found.tasks}, sizes) for k in range(1, count + 1)]
    parts: dict[str, Visits] = {
        task: visits([score(k - 1, task) for k in stages], [score(k, task) for k in stages])
        for task, stages in where.items()
    }
    most = max(len(stages) for stages in where.values())
    done = max((after for after, _ in found.scores), default=0)
    return {
        "curve": curve,
        "final": curve[-1],
        "area": area(curve),
        "residue": [residue(list(parts.values()), k) for k in range(1, most + 1)],
        "tasks": {
            task: {
                "visits": len(stages),
                "frequency": len(stages) / count,
                "since": done - max((k for k in stages if k <= done), default=done),
                "last": score(done, task),
                "gains": parts[task].gains,
                "losses": parts[task].losses,
                "residue": parts[task].residue,
            }
            for task, stages in where.items()
        },
    }


def task_rows(entry: JsonDict, show: Any) -> list[list[str]]:
    """Task, visits, share of stages, stages since the last one, last accuracy, mean gain and loss, last residue."""
    return [
        [
            task,
            str(one["visits"]),
            f"{one['frequency']:.3f}",
            str(one["since"]),
            *map(show, (one["last"], _mean(one["gains"]), _mean(one["losses"]), one["residue"][-1])),
        ]
        for task, one in sorted(entry["tasks"].items(), key=lambda pair: -pair[1]["visits"])
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
