"""The adapter of the task that a row is of: what a router could reach at best, and the right one where tasks are known.

State: "tasks", the member by task; a task that was trained twice has the later member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mcit.core.interfaces import PoolContext
from mcit.core.types import JsonDict
from mcit.routers.base import Router, States

if TYPE_CHECKING:
    from torch import Tensor


class Oracle(Router):
    """By the row's task."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._tasks: dict[str, str] = {}

    def learn(self, member: str, ctx: PoolContext) -> None:
        """Note the tasks of the stage."""
        self._tasks.update({task.name: member for task in ctx.stage.tasks})

    @staticmethod
    def route(
        rows: Sequence[Mapping[str, str]],
        members: Sequence[str],
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        states: States,
    ) -> list[str]:
        """The task's member; the newest member for a task that no stage trained."""
        return [state["tasks"].get(row["task"], members[-1]) for row in rows]

    def state_dict(self) -> JsonDict:
        """Members by task."""
        return {"tasks": self._tasks}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self._tasks = dict(state["tasks"])
