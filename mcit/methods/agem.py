"""A-GEM: a step never makes the loss on remembered rows worse, to first order.

Paper: Chaudhry et al., "Efficient Lifelong Learning with A-GEM", ICLR 2019, arXiv:1812.00420, section 4: with g the gradient of
the new rows and r that of a batch from the memory, g becomes ``g - (g.r / r.r) r`` where ``g.r < 0`` and stays where not.
Hooks: streams (rows of the memory), passes (two: memory, then everything else), on_stage_end (chooses what to keep).
State: "kept", a list of [task, row ids] per finished stage; with `age_weighted` "aged", what decides who makes room.

Both gradients are whole-step gradients over all trained tensors, after accumulation and summed over ranks, in fp32, before
penalties, the finite check and clipping; inner products are fp64. A memory gradient of zero changes nothing. Nothing waits for
the device: the factor of r is a tensor that is zero where g may stay.

Differs from the paper: the memory of a stage is drawn uniformly when it ends, equally many rows per task (the paper keeps a
ring buffer per class); one draw of rows follows the other in shuffled epochs. g holds every other method's loss terms and
streams, but no weight penalty, which is added afterwards. With AdamW the projection holds for the gradient, not for the step.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcit.core.config import Field
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StageContext, StepContext, StepPasses
from mcit.core.types import Claims, JsonDict, LossSum, Plan, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.memory import MemoryConfig, RowMemory
from mcit.methods.formulas.projection import projection_factor

STREAM = "agem"


class AGEM(Method):
    """Project the gradient of a step where it goes against that of the memory."""

    name = "agem"
    claims = Claims(slots=frozenset({"step:passes"}), streams=frozenset({STREAM}))
    step_passes = 2.0
    step_copies = 2

    class Config(MemoryConfig):
        """Settings of the memory."""

        keep: int = Field(100, ge=1)
        """Rows kept of each finished stage; with ``policy: age_weighted`` of all together."""
        per_step: int = Field(16, ge=0)
        """Rows of the memory that a step is compared with; 0 compares with none."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._memory = RowMemory(config, keep=config.keep, draw=self.name)

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """A note where more rows would be kept than a stage has."""
        return self._memory.check(stage, plan)

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over all kept rows; none in the first stage."""
        if not self._memory or self.config.per_step == 0:
            return {}
        rows = self._memory.rows(ctx)
        return {STREAM: StreamSpec(rows, self.config.per_step)} if rows else {}

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """The memory's gradient, then the step's own, then the projection."""
        if STREAM not in step.streams:
            step.accumulate()
            return
        step.accumulate([STREAM], loss=lambda out, batch: LossSum(out.nll_N.sum()))
        memory = step.take()
        step.accumulate([name for name in step.streams if name != STREAM])
        own = step.take()
        dot = step.dot(own, memory)
        step.add(own)
        step.add(memory, projection_factor(dot, step.dot(memory, memory)))
        ctx.log("agem/dot", dot)
        ctx.log("agem/projected", (dot < 0).double())

    def on_stage_end(self, ctx: StageContext) -> None:
        """Choose rows of the stage that just ended."""
        self._memory.add(ctx)

    def state_dict(self) -> JsonDict:
        """What is kept of which task."""
        return self._memory.state()

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back what is kept."""
        self._memory.load(state)
