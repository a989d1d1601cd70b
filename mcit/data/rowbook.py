"""Rows of a stage by task, split, forget set and pool, as methods ask for them: read from disk one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from mcit.core.errors import DataError
from mcit.core.types import Row, Stage, TaskSpec
from mcit.data import forgetset
from mcit.data.folder import DataFolder
from mcit.data.overlap import overlapping
from mcit.data.rowset import joined


class RowBook:
    """Rows of the tasks of a stage and of all earlier ones, opened when first asked for."""

    def __init__(self, tasks: Sequence[TaskSpec], stage: Stage, earlier: Sequence[Stage] = ()) -> None:
        """`tasks` are those of `earlier` stages and of this one."""
        self._tasks = {task.name: task for task in tasks}
        self.stages = (*earlier, stage)
        self._pools = {pool.recipe: pool for each in self.stages for pool in each.pools}
        self._open: dict[str, DataFolder] = {}
        self.stage = stage
        self.seed = stage.seed
        self.answer: Callable[[Sequence[Row], int], list[str]] | None = None
        """Greedy answers of the stage-start model to rows, in at most so many tokens; None while there is no model."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of this stage and of all earlier ones, in order of first appearance."""
        return tuple(self._tasks)

    def spec(self, task: str) -> TaskSpec:
        """Scorer, style and length of answers of a task. Raises DataError for one that is not in the sequence so far."""
        if task not in self._tasks:
            what, fix = f"task '{task}' is not in this or an earlier stage", f"one of {', '.join(self._tasks)}"
            raise DataError(what, where=self.stage.name, fix=fix)
        return self._tasks[task]

    def rows(self, task: str, split: str = "train") -> Sequence[Row]:
        """Rows in the recipe's order. Raises DataError for a task that is not in the sequence so far."""
        spec = self.spec(task)
        if task not in self._open:
            self._open[task] = DataFolder.open(spec.folder)
        return self._open[task].rows(split)

    def stage_rows(self) -> Sequence[Row]:
        """Training rows of all tasks of the stage."""
        return joined([self.rows(task.name) for task in self.stage.tasks])

    def forget_rows(self, stage: Stage | None = None) -> Sequence[Row]:
        """Training rows of the recipes that the stage, or an earlier one, forgets; without those held out."""
        return forgetset.to_forget(self._train((stage or self.stage).forget))

    def without_forgotten(self, rows: Sequence[Row], *, known: Collection[str] = ()) -> list[Row]:
        """Those of `rows` that were not forgotten, by this stage or by one since their task was last trained.

        `known` are folders of stages whose rows are out already. Raises DataError for another one whose data were deleted.
        """
        last = {task.name: stage.index for stage in self.stages[:-1] for task in stage.tasks}
        left = list(rows)
        for stage in self.stages:
            since = [row for row in left if stage.index >= last.get(row.task, 0)]
            if not stage.forget or not since or stage.folder in known:
                continue
            if any(task.gone for task in stage.forget):
                what = (
                    f"which of the rows kept of earlier stages {stage.name} forgot is not known: its data were deleted"
                )
                again = f"mcit run CONFIG --from RUN --stage {self.stage.index - 1}"  # a begun run has the stage in its config
                fix = f"restore them, or leave out what replays rows, in another run on the stages before: {again}"
                raise DataError(what, where=self.stage.name, fix=fix)
            out = {id(row) for row, _ in overlapping(since, self.forget_rows(stage))}
            left = [row for row in left if id(row) not in out]
        return left

    def alternate_rows(self) -> Sequence[Row]:
        """The rows to forget with their alternate answers. Raises DataError for rows without one."""
        return forgetset.with_alternates(self.forget_rows(), self._train(self.stage.alternate))

    def decouple_rows(self, *, category: str = "", tries: int = 3, max_new_tokens: int = 32) -> Sequence[Row]:
        """What the rows to forget ask, about harmless pictures. Raises DataError for rows without one.

        With a `category` a stage that has none at all makes them (see `forgetset.made_decoupled`) from its retained rows
        and the answers of its start model; before there is one, the answers to forget stand in.
        """
        rows, given = self.forget_rows(), self._train(self.stage.decouple)
        if len(given) or not category or any(row.meta.get("decouple") for row in rows):
            return forgetset.decoupled(rows, given)

        def answer(asked: Sequence[Row]) -> list[str]:
            return self.answer(asked, max_new_tokens) if self.answer else [row.answer for row in asked]

        retained = self.stage_rows()
        return forgetset.made_decoupled(rows, retained, answer, category=category, tries=tries, seed=self.seed)

    def holdout_rows(self) -> Sequence[Row]:
        """Rows of the stage's holdout, then those to forget that are marked as held out."""
        return joined([self._train(self.stage.holdout), forgetset.held_out(self._train(self.stage.forget))])

    def _train(self, tasks: Sequence[TaskSpec]) -> Sequence[Row]:
        return joined([self._folder(task).rows("train") for task in tasks])

    def pool(self, recipe: str) -> Sequence[Row]:
        """Training rows of a recipe beside the tasks. Raises DataError for one that no method so far names."""
        return self._folder(self._pool(recipe)).rows("train")

    def pool_digest(self, recipe: str) -> str:
        """Digest of the recipe's text and sources."""
        return self._pool(recipe).digest

    def _pool(self, recipe: str) -> TaskSpec:
        if recipe not in self._pools:
            what = f"recipe '{recipe}' is none that a method of this or an earlier stage reads"
            raise DataError(what, where=self.stage.name, fix="let the method name it in recipes()")
        return self._pools[recipe]

    def _folder(self, task: TaskSpec) -> DataFolder:
        key = f"recipe {task.recipe}"
        if key not in self._open:
            self._open[key] = DataFolder.open(task.folder)
        return self._open[key]

    def validation_rows(self) -> Sequence[Row]:
        """Validation rows of all tasks of the stage."""
        return joined([self.rows(task.name, "validation") for task in self.stage.tasks])
