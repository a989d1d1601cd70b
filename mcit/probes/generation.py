"""Generated answers of the tasks so far while a stage trains, scored as the run scores them.

Per task accuracy, share of answers in the right form, and share cut off at the limit, in [0, 1], on the same rows each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcit.core.config import Field
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, ProbeContext
from mcit.core.types import JsonDict, Plan, Row
from mcit.probes.base import Probe, ProbeConfig, fixed_rows, task_problems


class Generation(Probe):
    """Scores of answers made every so many steps."""

    class Config(ProbeConfig):
        """Rows and moments."""

        every: int = Field(200, ge=1)
        """Steps between two measurements, besides the ones before the first and after the last step."""
        rows: int = Field(32, ge=1)
        """Rows per task, the same ones in the whole run."""
        tasks: list[str] = []
        """Tasks to measure once they are seen; empty: all of them."""

    def check(self, plan: Plan) -> list[Problem]:
        """Tasks that no stage trains."""
        return task_problems(self.config.tasks, plan)

    def rows(self, data: DataContext) -> Mapping[str, Sequence[Row]]:
        """Fixed rows of each task seen so far."""
        wanted = [task for task in data.tasks if task in self.config.tasks or not self.config.tasks]
        return {task: fixed_rows(data, task, self.config.rows) for task in wanted}

    def measure(self, rows: Mapping[str, Sequence[Row]], ctx: ProbeContext) -> JsonDict:
        """``{task: {accuracy, valid, truncated, rows}}``."""
        return {task: ctx.score(task, mine) for task, mine in rows.items() if mine}
