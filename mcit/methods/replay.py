"""Experience replay: keep a few rows of every finished stage and train on them beside the new task.

Paper: Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019, arXiv:1811.11682; the small per-task memory
of rows follows Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, arXiv:1902.10486, section 3.
Hooks: streams (rows of earlier tasks), loss_term (their token loss), on_stage_end (chooses what to keep).
State: "kept", a list of [task, row ids] per finished stage, less rows that a stage forgot since; "without", those stages;
with `age_weighted` "aged", what decides who makes room.

The replayed rows come on top of the task's rows of a step; their loss is a mean over their own answer tokens, times `weight`,
and is added to the task's (one mean over all rows of a step, as others take it, would weigh the two by their counts).
Rows are drawn uniformly without replacement by a generator seeded with the stage's seed.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcit.core.config import Field
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, Plan, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.memory import MemoryConfig, RowMemory


class Replay(Method):
    """Rows of earlier stages in every step."""

    name = "replay"
    claims = Claims(streams=frozenset({"replay"}))

    class Config(MemoryConfig):
        """Settings of the memory."""

        weight: float = Field(1.0, ge=0)
        """Factor of the replayed rows' loss; 0 opens no stream."""
        keep: int = Field(100, ge=1)
        """Rows kept of each finished stage; with ``policy: age_weighted`` of all together."""
        per_step: int = Field(4, ge=1)
        """Replayed rows per optimiser step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._memory = RowMemory(config, keep=config.keep, draw=self.name)

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """A note where more rows would be kept than a stage has."""
        return self._memory.check(stage, plan)

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over all kept rows; none in the first stage, or where all of them were forgotten."""
        if not self._memory or self.config.weight == 0:
            return {}
        rows = self._memory.rows(ctx)
        return {"replay": StreamSpec(rows, self.config.per_step)} if rows else {}

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of the replayed rows."""
        if batch.stream != "replay":
            return None
        return LossSum(self.config.weight * out.nll_N.sum(), per="tokens")

    def on_stage_end(self, ctx: StageContext) -> None:
        """Choose rows of the stage that just ended."""
        self._memory.add(ctx)

    def state_dict(self) -> JsonDict:
        """What is kept of which task."""
        return self._memory.state()

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back what is kept."""
        self._memory.load(state)
