"""A memory of rows: some of every finished stage, as ids, and read back from their tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mcit.core.errors import StateError
from mcit.core.interfaces import DataContext, StageContext
from mcit.core.types import Row

Kept = list[tuple[str, list[str]]]
"""Task and ids of the rows that are kept of it."""


def remember(kept: Kept, ctx: StageContext, *, count: int, draw: str) -> Kept:
    """`kept` and `count` rows of the stage that just ended, equally many of each of its tasks.

    Rows are drawn uniformly without replacement, by the stage's seed and `draw`; a task seen again is drawn anew.
    """
    by_task: dict[str, list[str]] = {}
    for row in ctx.data.stage_rows():
        by_task.setdefault(row.task, []).append(row.id)
    for task, ids in by_task.items():
        share = max(1, count // len(by_task))
        chosen = random.Random(f"{ctx.seed}/{draw}/{task}").sample(ids, min(share, len(ids)))
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
