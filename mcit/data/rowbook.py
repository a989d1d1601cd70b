"""Rows of a stage by task, split, forget set and pool, as methods ask for them: read from disk one by one."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.errors import DataError
from mcit.core.types import Row, Stage, TaskSpec
from mcit.data.folder import DataFolder
from mcit.data.rowset import joined


class RowBook:
    """Rows of the tasks of a stage and of all earlier ones, opened when first asked for."""

    def __init__(self, tasks: Sequence[TaskSpec], stage: Stage) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._pools = {pool.recipe: pool for pool in stage.pools}
        self._open: dict[str, DataFolder] = {}
        self.stage = stage
        self.seed = stage.seed

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of this stage and of all earlier ones, in order of first appearance."""
        return tuple(self._tasks)

    def rows(self, task: str, split: str = "train") -> Sequence[Row]:
        """Rows in the recipe's order. Raises DataError for a task that is not in the sequence so far."""
        if task not in self._tasks:
            raise DataError(f"task '{task}' is not in this or an earlier stage", where=self.stage.name)
        if task not in self._open:
            self._open[task] = DataFolder.open(self._tasks[task].folder)
        return self._open[task].rows(split)

    def stage_rows(self) -> Sequence[Row]:
        """Training rows of all tasks of the stage."""
        return joined([self.rows(task.name) for task in self.stage.tasks])

    def forget_rows(self) -> Sequence[Row]:
        """Training rows of the recipes the stage forgets."""
        return joined([self._folder(task).rows("train") for task in self.stage.forget])

    def pool(self, recipe: str) -> Sequence[Row]:
        """Training rows of a recipe beside the tasks. Raises DataError for one that no method of the stage names."""
        return self._folder(self._pool(recipe)).rows("train")

    def pool_digest(self, recipe: str) -> str:
        """Digest of the recipe's text and sources."""
        return self._pool(recipe).digest

    def _pool(self, recipe: str) -> TaskSpec:
        if recipe not in self._pools:
            raise DataError(f"recipe '{recipe}' is not one that a method of this stage reads", where=self.stage.name)
        return self._pools[recipe]

    def _folder(self, task: TaskSpec) -> DataFolder:
        key = f"recipe {task.recipe}"
        if key not in self._open:
            self._open[key] = DataFolder.open(task.folder)
        return self._open[key]

    def validation_rows(self) -> Sequence[Row]:
        """Validation rows of all tasks of the stage."""
        return joined([self.rows(task.name, "validation") for task in self.stage.tasks])
