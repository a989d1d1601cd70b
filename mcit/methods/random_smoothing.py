"""Random smoothing: forget on average over weights with noise.

Paper: Fan et al., "Towards LLM Unlearning Resilient to Relearning Attacks", ICML 2025, arXiv:2502.05374: the mean of
the forget gradient over draws of ``theta + N(0, sigma^2)``, the retain gradient at theta.
Hooks: passes (the forget streams once per draw, everything else once).
State: none.

Goes around any forget objective. Noise is drawn per tensor from (stage seed, step, draw, name): the same on every
engine and after a resume. fp32 weights are moved and put back bit for bit; the released code does so in bf16, where 1
to 4 % of the weights do not come back, and steps the optimizer inside the training step.
"""

from __future__ import annotations

from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext, StepPasses
from mcit.core.seeds import seed_for
from mcit.core.types import Claims, WeightUnit
from mcit.methods.base import Method
from mcit.methods.formulas.smoothing import FORGET_STREAMS, noise_of, parted


class RandomSmoothing(Method):
    """The mean forget gradient under noise."""

    name = "random_smoothing"
    claims = Claims(slots=frozenset({"step:passes"}))
    step_copies = 2

    class Config(MethodConfig):
        """Settings of the noise."""

        sigma: float = Field(1e-4, ge=0)
        """Standard deviation per weight; 0 is the host method alone."""
        draws: int = Field(3, ge=1)
        """Noisy gradients per step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.step_passes = float(config.draws) if config.sigma else 1.0

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """The forget gradient at each draw, their mean, and everything else."""
        c = self.config
        forget, rest = parted(step.streams, FORGET_STREAMS)
        if not forget or not c.sigma:
            step.accumulate()
            return
        for number in range(c.draws):

            def shake(unit: WeightUnit, tensors: dict[str, Tensor], number: int = number) -> None:
                def seed(name: str) -> int:
                    return seed_for(ctx.stage.seed, "random_smoothing", ctx.step, number, name)

                for role, noise in noise_of(unit, tensors, c.sigma, seed).items():
                    tensors[role] += noise

            with step.moved(shake):
                step.accumulate(forget)
        step.add(step.take(), 1 / c.draws)
        if rest:
            step.accumulate(rest)
