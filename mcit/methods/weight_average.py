"""Weight averaging: end a stage with the plain mean of its weights over its last part.

Paper: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, arXiv:1803.05407,
around a forget objective in Fan et al., ICML 2025, arXiv:2502.05374 (from step 100 of 125, every 5).
Hooks: on_stage_start (an empty mean), after_step (adds the weights), on_stage_end (the mean becomes the stage's
weights).
State: "count", how many are in the mean; tensors "mean" by parameter name.

Training goes on with the raw weights; LoRA factors are averaged one by one, not their product. A stage that ends before
the first one is taken keeps its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Claims, JsonDict, Plan, Stage
from mcit.methods.base import Method


class WeightAverage(Method):
    """Commit the mean of the weights after some steps."""

    name = "weight_average"
    claims = Claims(slots=frozenset({"weights:edit"}))

    class Config(MethodConfig):
        """Which steps are averaged."""

        start: float = Field(0.8, ge=0)
        """First step whose weights count: below 1 a share of the stage's steps, from 1 on a number."""
        every: int = Field(5, ge=1)
        """Steps between two."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._count = 0

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """A start that the stage does not reach."""
        first = self._first(stage.steps)
        if not stage.steps or first <= stage.steps:
            return []
        what = f"start: {self.config.start:g} is not reached in {stage.steps} steps, so nothing is averaged"
        return [Problem(f"stage {stage.name}, method {self.name}", what, "lower start, or remove the method")]

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """An fp32 copy of every trained tensor."""
        return sum(4 * math.prod(shape) for shape in shapes.values())

    def _first(self, steps: int) -> int:
        start = self.config.start
        return max(1, math.ceil(start * steps) if start < 1 else int(start))

    def on_stage_start(self, ctx: StageContext) -> None:
        """Nothing is averaged yet."""
        self._count = 0
        self.tensors.drop("mean")

    def after_step(self, ctx: StepContext) -> None:
        """``mean <- mean + (w - mean) / count`` after the steps that count."""
        past = ctx.step + 1 - self._first(ctx.total_steps)
        if past < 0 or past % self.config.every:
            return
        self._count += 1
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    name = unit.params[role]
                    mean = self.tensors.get("mean", name)
                    old = tensor if mean is None else mean.to(tensor.device)
                    self.tensors.put("mean", name, old + (tensor - old) / self._count)

    def on_stage_end(self, ctx: StageContext) -> None:
        """Write the mean."""
        for unit in ctx.weights.units() if self._count else ():
            with ctx.weights.edit(unit) as tensors:
                for role, tensor in tensors.items():
                    tensor.copy_(self.tensors.require("mean", unit.params[role]))
        self.tensors.drop("mean")

    def state_dict(self) -> JsonDict:
        """How many are in the mean."""
        return {"count": self._count}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self._count = int(state["count"])
