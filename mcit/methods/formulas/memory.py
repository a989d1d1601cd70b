"""A memory of rows: some of every finished stage, as ids, and read back from their tasks.

Under ``policy: age_weighted`` all stages share one budget and the rows of least ``relevance * exp(-age / tau)`` make room, the
pruning of HEMA (arXiv:2504.16754) with a relevance in place of its lambda and without its bonus for recent recall: rows of a
replay memory are all read again in every stage. Age is in stages. The relevance is uniform in [0, 1), drawn when a row comes
in, so that a stage's rows go one by one and not all at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mcit.core.ageing import age_weight, lightest
from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem, StateError
from mcit.core.interfaces import DataContext, StepContext
from mcit.core.types import JsonDict, Plan, Row, Stage

Kept = list[tuple[str, list[str]]]
"""Task and ids of the rows that are kept of it."""


class MemoryConfig(MethodConfig):
    """What makes room in a memory of rows."""

    policy: Literal["uniform", "age_weighted"] = "uniform"
    """``uniform``: rows are drawn alike; ``age_weighted``: those of least relevance * exp(-age / tau) make room first."""
    tau: float = Field(20.0, gt=0)
    """With ``age_weighted``: stages in which the weight of a row falls to 1/e."""


class Aged(NamedTuple):
    """A row under ``age_weighted``."""

    task: str
    id: str
    stage: int
    """In which it came in."""
    relevance: float


class RowMemory:
    """Ids of the rows kept of finished stages. `keep` is of each stage, with ``age_weighted`` of all together."""

    def __init__(self, config: MemoryConfig, *, keep: int, draw: str) -> None:
        self._config, self._keep, self._draw = config, keep, draw
        self._kept: Kept = []
        self._aged: list[Aged] = []
        self._without: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._kept)

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """A note where more rows would be kept than there are, at the first stage of which that is so."""
        short = [s.index for s in plan.stages if 0 < s.rows < self._keep]
        if self._config.policy != "uniform" or stage.index not in short[:1]:
            return []
        what = f"is {self._keep}, and this stage has {stage.rows} training rows: all of them are kept"
        return [Problem("keep", what, "use a smaller number, if not meant", "note")]

    def add(self, ctx: StepContext) -> None:
        """Take in rows of the stage that just ended; rows of a task that comes again take the place of its earlier ones.

        With ``age_weighted`` only the same rows do, which are new again.
        """
        self._forget(ctx.data)
        if self._config.policy == "uniform":
            self._kept = remember(self._kept, ctx, count=self._keep, draw=self._draw)
            return
        new = {
            (task, i): Aged(
                task, i, ctx.stage.index, random.Random(f"{ctx.stage.seed}/{self._draw}/{task}/{i}").random()
            )
            for task, ids in remember([], ctx, count=self._keep, draw=self._draw)
            for i in ids
        }
        held = [row for row in self._aged if (row.task, row.id) not in new]
        self._aged = pruned([*held, *new.values()], self._keep, now=ctx.stage.index, tau=self._config.tau)
        self._kept = grouped(self._aged)

    def _forget(self, ctx: DataContext) -> None:
        """Take out what stages forgot, so that their data may be deleted."""
        forgets = [stage.folder for stage in ctx.stages if stage.forget]
        if set(forgets) <= set(self._without):
            return
        left = {(row.task, row.id) for row in self.rows(ctx)}
        kept = [(task, [i for i in ids if (task, i) in left]) for task, ids in self._kept]
        self._kept = [(task, ids) for task, ids in kept if ids]
        self._aged = [row for row in self._aged if (row.task, row.id) in left]
        self._without = forgets

    def rows(self, ctx: DataContext, *, present: StepContext | None = None) -> list[Row]:
        """The kept rows, task by task, with what would be kept of the `present` stage if it ended now; none that was forgotten.

        Raises StateError for one that is no longer in its task.
        """
        if present is None:
            return ctx.without_forgotten(recall(self._kept, ctx, where=self._draw), known=self._without)
        other = RowMemory(self._config, keep=self._keep, draw=self._draw)
        other._kept, other._aged, other._without = self._kept, self._aged, self._without
        other.add(present)
        return other.rows(ctx)

    def state(self) -> JsonDict:
        """Ids by task, stages whose forgotten rows are out, and with ``age_weighted`` the stage and relevance of each row."""
        aged = self._aged if self._config.policy == "age_weighted" else []
        kept = [[task, ids] for task, ids in self._kept]
        return {"kept": kept, "without": self._without, "aged": [list(row) for row in aged]}

    def load(self, state: JsonDict) -> None:
        """Take back what `state` gave."""
        self._kept = kept_of(state["kept"])
        self._aged = [Aged(*row) for row in state.get("aged", [])]
        self._without = [str(folder) for folder in state.get("without", [])]


def pruned(rows: Sequence[Aged], keep: int, *, now: int, tau: float) -> list[Aged]:
    """The heaviest rows in their order."""
    weights = [age_weight(now - row.stage, relevance=row.relevance, tau=tau) for row in rows]
    gone = set(lightest(weights, len(rows) - keep))
    return [row for place, row in enumerate(rows) if place not in gone]


def grouped(rows: Sequence[Aged]) -> Kept:
    """Ids by task, tasks in order of their first row, sorted ids."""
    by_task: dict[str, list[str]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.id)
    return [(task, sorted(ids)) for task, ids in by_task.items()]


def remember(kept: Kept, ctx: StepContext, *, count: int, draw: str) -> Kept:
    """`kept` and `count` rows of the present stage, equally many of each of its tasks.

    Rows are drawn uniformly without replacement, by the stage's seed and `draw`; a task seen again is drawn anew.
    """
    by_task: dict[str, list[str]] = {}
    for row in ctx.data.stage_rows():
        by_task.setdefault(row.task, []).append(row.id)
    for task, ids in by_task.items():
        share = max(1, count // len(by_task))
        chosen = random.Random(f"{ctx.stage.seed}/{draw}/{task}").sample(ids, min(share, len(ids)))
        kept = [entry for entry in kept if entry[0] != task] + [(task, sorted(chosen))]
    return kept


def recall(kept: Kept, ctx: DataContext, *, where: str) -> list[Row]:
    """The kept rows, task by task. Raises StateError for one that is no longer in its task."""
    rows: list[Row] = []
    for task, ids in kept:
        wanted = set(ids)
        by_id = {row.id: row for row in ctx.rows(task) if row.id in wanted}
        lost = [i for i in ids if i not in by_id]
        if lost:
            raise StateError(f"kept row '{lost[0]}' is no longer in task {task}", where=where, fix="restore the recipe")
        rows += [by_id[i] for i in ids]
    return rows


def kept_of(state: Sequence[Sequence[object]]) -> Kept:
    """What a state file holds of a memory."""
    return [(str(task), [str(i) for i in ids]) for task, ids in state]  # type: ignore[attr-defined]
