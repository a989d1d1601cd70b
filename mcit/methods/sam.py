"""SAM: forget at the worst place nearby, so that a few steps of relearning do not bring it back.

Paper: Fan et al., "Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization Perspective
and Beyond", ICML 2025, arXiv:2502.05374, with the perturbation of Foret et al., arXiv:2010.01412: ``eps = rho g / |g|``
with g the gradient of the forget loss over all trained tensors together; the step takes the forget gradient at ``theta
+ eps`` and the retain gradient at theta.
Hooks: passes (the forget streams twice, everything else once).
State: none.

Goes around any forget objective; only its streams are smoothed. fp32 weights are moved and put back bit for bit: in
bf16 most of a move of 0.01 is rounded away. g is the step's whole gradient, after accumulation and over ranks; the
released code keeps the last micro-batch's. A group of LoRA matrices at 0 has no gradient and stays at 0. With LoRA, rho
is in the space of A and B, where the paper's 0.01 (full weights) does not carry over: try 0.01 to 0.1.
"""

from __future__ import annotations

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext, StepPasses
from mcit.core.types import Claims
from mcit.methods.base import Method
from mcit.methods.formulas.smoothing import FORGET_STREAMS, along, inverse, parted


class SAM(Method):
    """The forget gradient at the worst place within `rho`."""

    name = "sam"
    claims = Claims(slots=frozenset({"step:passes"}))
    step_copies = 2

    class Config(MethodConfig):
        """Settings of the perturbation."""

        rho: float = Field(0.01, ge=0)
        """Length of the perturbation over all trained tensors; 0 is the host method alone."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.step_passes = 2.0 if config.rho else 1.0

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """Climb, take the forget gradient there, come back, and everything else."""
        forget, rest = parted(step.streams, FORGET_STREAMS)
        if not forget or not self.config.rho:
            step.accumulate()
            return
        step.accumulate(forget)
        here = step.take()
        norm = step.norm(here)
        ctx.log("sam/norm", norm)
        with step.moved(along([(here, self.config.rho * inverse(norm))])):
            step.accumulate(forget)
        if rest:
            step.accumulate(rest)
