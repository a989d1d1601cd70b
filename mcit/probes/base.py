"""The contract of a probe: rows, moments and a measurement inside a stage. It sees the model and changes nothing.

A run's config lists probes (``probes: [{use: …}]``); they run in every stage. What they measure goes into the stage's
``probes.jsonl`` and comes back after a restart as metrics do. Weights, optimiser and random state are those of the same run
without probes: a probe is handed no weights, and one that draws from a global random generator is refused.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from mcit.core.config import Config, Field, suggestion
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, ProbeContext
from mcit.core.types import JsonDict, Plan, Row, Stage


class ProbeConfig(Config):
    """Settings that every probe has."""

    every: int = Field(10, ge=1)
    """Steps between two measurements, besides the ones before the first and after the last step."""
    share: float | None = Field(0.1, gt=0)
    """Largest share of the stage's step time; what would pass it is left out, and the record says so. None never is."""


class Probe:
    """Measures something in every stage; keeps nothing between measurements but what is on record."""

    Config: type[ProbeConfig] = ProbeConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, plan: Plan) -> list[Problem]:
        """Problems of these settings in this plan, before a model is loaded."""
        return []

    def rows(self, data: DataContext) -> Mapping[str, Sequence[Row]]:
        """Rows to measure on in this stage, by a name of theirs; nothing is measured in a stage without any."""
        raise NotImplementedError

    def due(self, step: int, total: int) -> bool:
        """Whether to measure after `step` of `total` updates; 0 is before the first. Those two ends are never left out."""
        every: int = self.config.every
        return step in (0, total) or step % every == 0

    def measure(self, rows: Mapping[str, Sequence[Row]], ctx: ProbeContext) -> JsonDict:
        """What is written: numbers, strings, lists by name, the same on every rank. Every rank calls it."""
        raise NotImplementedError


def fixed_rows(data: DataContext, task: str, count: int, split: str = "validation") -> list[Row]:
    """`count` validation rows of a task (test rows where it has none), the same in every stage and run."""
    every = data.rows(task, split) or data.rows(task, "test")
    places = random.Random(f"probe/{task}").sample(range(len(every)), min(count, len(every)))
    return [every[place] for place in sorted(places)]


def steps_between(data: DataContext, stage: Stage) -> int:
    """Planned steps of the stages after an earlier one and before the present one; numbers of rejected stages are missing."""
    return sum(other.steps for other in data.stages[:-1] if other.index > stage.index)


def task_problems(tasks: Sequence[str], plan: Plan) -> list[Problem]:
    """Tasks that no stage trains, so that they are never seen."""
    known = [task.name for task in plan.tasks]
    return [
        Problem("tasks", f"task '{task}' is in no stage, so it is never seen", suggestion(task, known))
        for task in tasks
        if task not in known
    ]
