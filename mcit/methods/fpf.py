"""FPF and k-FPF: fine-tune the few modules that moved most on a small memory of rows.

Paper: Zhao et al., "Does Continual Learning Equally Forget All Parameters?", ICML 2023, arXiv:2304.04158: the drift of a
module is the mean absolute change of its parameters between two moments; few modules are specific to a task, and
fine-tuning those alone on a buffer brings earlier tasks back. FPF does so at the end, k-FPF k times evenly over the run,
whatever the stage borders.
Hooks: on_stage_start (where drift is measured from), after_step (k-FPF), on_stage_end (drift of the stage; FPF; what to
keep).
State: "kept", a list of [task, row ids] per finished stage, with `age_weighted` "aged", what decides who makes room; "steps"
of the run so far; tensors "start" by parameter name.

Modules are LoRA pairs and whole tensors; their drift over the stage is logged as ``drift/<module>``. The modules chosen are
those of largest drift that hold at most `share` of the trained numbers (ours; the paper picks kinds of layers of its
networks). Fine-tuning starts a fresh AdamW; all other tensors keep their bits. The memory holds rows of every stage so
far, the present one included, and they are learned by their token loss (the paper's other form, by stored logits, is
left out). With `every: 0` this is FPF: at the end of each stage, since any stage may be the last; k-FPF with k = 4 over
1,000 steps is ``every: 250``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mcit.core.config import Field
from mcit.core.errors import Problem
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Claims, JsonDict, Plan, Row, Stage
from mcit.methods.base import Method
from mcit.methods.formulas.drift import due, mean_drift, most_moved
from mcit.methods.formulas.memory import MemoryConfig, RowMemory


class FPF(Method):
    """Short fine-tuning of the most moved modules on remembered rows."""

    name = "fpf"
    claims = Claims(slots=frozenset({"weights:edit"}))

    class Config(MemoryConfig):
        """Settings of memory and fine-tuning."""

        keep: int = Field(200, ge=1)
        """Rows kept of each finished stage; with ``policy: age_weighted`` of all together."""
        steps: int = Field(50, ge=0)
        """Steps of each fine-tuning; 0 only measures drift."""
        share: float = Field(0.1, gt=0, le=1)
        """Share of the trained numbers that the chosen modules may hold."""
        lr_factor: float = Field(0.1, gt=0)
        """Learning rate as a share of the stage's."""
        every: int = Field(0, ge=0)
        """Steps of the run between two fine-tunings (k-FPF); 0 is at the end of each stage."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._memory = RowMemory(config, keep=config.keep, draw=self.name)
        self._steps = 0

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """A note where more rows would be kept than a stage has."""
        return self._memory.check(stage, plan)

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """An fp32 copy of every trained tensor."""
        return sum(4 * math.prod(shape) for shape in shapes.values())

    def on_stage_start(self, ctx: StageContext) -> None:
        """Measure drift from here."""
        self._mark(ctx)

    def after_step(self, ctx: StepContext) -> None:
        """k-FPF: fine-tune after every so many steps of the run."""
        self._steps += 1
        if due(self._steps, self.config.every):
            self._tune(ctx, self._drift(ctx), self._memory.rows(ctx.data, present=ctx))
            self._mark(ctx)

    def on_stage_end(self, ctx: StageContext) -> None:
        """Log the drift of every module, fine-tune (FPF), keep rows of the stage."""
        drift = self._drift(ctx)
        for name, value in drift.items():
            ctx.log(f"drift/{name}", value)
        self._memory.add(ctx)
        if not self.config.every:
            self._tune(ctx, drift, self._memory.rows(ctx.data))
        self.tensors.drop("start")

    def _mark(self, ctx: StepContext) -> None:
        self.tensors.drop("start")
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    self.tensors.put("start", unit.params[role], tensor)

    def _drift(self, ctx: StepContext) -> dict[str, float]:
        """Mean absolute change of each module since the last mark; of a pair the mean over its numbers."""
        out = {}
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                moved = [
                    mean_drift(tensor, self.tensors.require("start", unit.params[role]).to(tensor.device))
                    * tensor.numel()
                    for role, tensor in tensors.items()
                ]
                out[unit.name] = float(sum(moved) / sum(tensor.numel() for tensor in tensors.values()))
        return out

    def _tune(self, ctx: StepContext, drift: Mapping[str, float], rows: Sequence[Row]) -> None:
        if not self.config.steps or not drift:
            return
        units = {unit.name: unit for unit in ctx.weights.units()}
        sizes = {}
        for name, unit in units.items():
            with ctx.weights.gathered(unit) as tensors:
                sizes[name] = sum(tensor.numel() for tensor in tensors.values())
        chosen = most_moved(drift, sizes, self.config.share)
        names = [parameter for name in chosen for parameter in units[name].params.values()]
        lr = self.config.lr_factor * ctx.stage.optim.lr
        ctx.fine_tune(rows, names=names, steps=self.config.steps, lr=lr)

    def state_dict(self) -> JsonDict:
        """What is kept of which task, and the steps so far."""
        return {**self._memory.state(), "steps": self._steps}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back both."""
        self._memory.load(state)
        self._steps = state["steps"]
