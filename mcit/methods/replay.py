"""Experience replay: keep a few rows of every finished stage and train on them beside the new task.

Paper: Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019, arXiv:1811.11682; the small per-task memory
of rows follows Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, arXiv:1902.10486, section 3.
Hooks: streams (rows of earlier tasks), loss_term (their token loss), on_stage_end (chooses what to keep).
State: "kept", a list of [task, row ids] per finished stage.

The replayed rows come on top of the task's rows of a step; their loss is a mean over their own answer tokens, times `weight`.
Rows are drawn uniformly without replacement by a generator seeded with the stage's seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import StateError
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, StreamSpec
from mcit.methods.base import Method


class Replay(Method):
    """Rows of earlier stages in every step."""

    name = "replay"
    claims = Claims(streams=frozenset({"replay"}))

    class Config(MethodConfig):
        """Settings of the memory."""

        weight: float = Field(1.0, ge=0)
        """Factor of the replayed rows' loss; 0 opens no stream."""
        keep: int = Field(100, ge=1)
        """Rows kept of each finished stage."""
        per_step: int = Field(4, ge=1)
        """Replayed rows per optimiser step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._kept: list[list[object]] = []

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over all kept rows; none in the first stage."""
        if not self._kept or self.config.weight == 0:
            return {}
        rows = []
        for task, ids in self._kept:
            wanted = set(ids)  # type: ignore[call-overload]
            by_id = {row.id: row for row in ctx.rows(str(task)) if row.id in wanted}
            lost = [i for i in ids if i not in by_id]  # type: ignore[attr-defined]
            if lost:
                raise StateError(
                    f"kept row '{lost[0]}' is no longer in task {task}", where="replay", fix="restore the recipe"
                )
            rows += [by_id[i] for i in ids]  # type: ignore[attr-defined]
        return {"replay": StreamSpec(rows, self.config.per_step)}

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of the replayed rows."""
        if batch.stream != "replay":
            return None
        return LossSum(self.config.weight * out.nll_N.sum(), per="tokens")

    def on_stage_end(self, ctx: StageContext) -> None:
        """Choose rows of the stage that just ended."""
        by_task: dict[str, list[str]] = {}
        for row in ctx.data.stage_rows():
            by_task.setdefault(row.task, []).append(row.id)
        for task, ids in by_task.items():
            share = max(1, self.config.keep // len(by_task))
            chosen = random.Random(f"{ctx.seed}/replay/{task}").sample(ids, min(share, len(ids)))
            self._kept = [entry for entry in self._kept if entry[0] != task] + [[task, sorted(chosen)]]

    def state_dict(self) -> JsonDict:
        """What is kept of which task."""
        return {"kept": self._kept}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back what is kept."""
        self._kept = [[task, list(ids)] for task, ids in state["kept"]]
