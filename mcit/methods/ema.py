"""EMA: end a stage with the exponential moving average of its weights.

Source: the fixed average that LCIA starts from (arXiv:2410.10868, "Large Continual Instruction Assistant", section on EMA);
Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, doi:10.1137/0330046.
Hooks: on_stage_start (the average begins at the stage's start), after_step (one step of the average), on_stage_end (the
average becomes the stage's weights).
State: tensors "ema" by parameter name.

Training goes on with the raw weights; only what is committed is averaged. LoRA factors are averaged one by one, as in the
released code of LCIA, not their product. ``decay: 0`` commits the raw weights, bit for bit.
"""

import math
from collections.abc import Mapping

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Claims
from mcit.methods.base import Method
from mcit.methods.formulas.averaging import moving_average


class EMA(Method):
    """Commit ``decay * average + (1 - decay) * weights``, taken after every step."""

    name = "ema"
    claims = Claims(slots=frozenset({"weights:edit"}))

    class Config(MethodConfig):
        """Settings of the average."""

        decay: float = Field(0.99, ge=0, lt=1)
        """Share of the old average that stays in a step; 0.99 is LCIA's fixed value."""

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """An fp32 copy of every trained tensor."""
        return sum(4 * math.prod(shape) for shape in shapes.values())

    def on_stage_start(self, ctx: StageContext) -> None:
        """The average is what the stage starts with."""
        self.tensors.drop("ema")
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    self.tensors.put("ema", unit.params[role], tensor)

    def after_step(self, ctx: StepContext) -> None:
        """``ema <- decay * ema + (1 - decay) * w``."""
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    name = unit.params[role]
                    average = self.tensors.require("ema", name).to(tensor.device)
                    self.tensors.put("ema", name, moving_average(average, tensor, self.config.decay))

    def on_stage_end(self, ctx: StageContext) -> None:
        """Write the average."""
        for unit in ctx.weights.units():
            with ctx.weights.edit(unit) as tensors:
                for role, tensor in tensors.items():
                    tensor.copy_(self.tensors.require("ema", unit.params[role]))
        self.tensors.drop("ema")
