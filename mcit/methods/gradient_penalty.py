"""Gradient penalty: a loss whose gradient is short where it ends, so that one step of relearning moves little.

Paper: Fan et al., "Towards LLM Unlearning Resilient to Relearning Attacks", ICML 2025, arXiv:2502.05374: ``loss + rho
|grad loss|`` on the forget loss. On the loss of learned rows it is the gradient restriction of Liu et al., "Efficient
Machine Unlearning via Influence Approximation", 2025, arXiv:2507.23257 (rho 0.005): preset ``gradient_restriction``.
Hooks: passes (the penalised streams twice, everything else once).
State: none.

The gradient of the penalty is the Hessian times ``v = g / |g|``, by a finite difference: ``(g(theta + mu v) - g) /
mu``, exact for a quadratic loss. It needs no second derivative, so it goes with checkpointing, fused attention and
sharded engines; weights move in fp32 and come back bit for bit. In the paper's released code the penalty is a plain
number without a gradient, and rho is not read: its published figures are not those of this method. ``norm: tensors``
sums the norms of the tensors, as the released code of the gradient restriction does, instead of the norm over all of
them.
"""

from __future__ import annotations

from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext, StepPasses
from mcit.core.types import Claims
from mcit.methods.base import Method
from mcit.methods.formulas.smoothing import FORGET_STREAMS, along, inverse, parted, to_unit_tensors


class GradientPenalty(Method):
    """The norm of a loss's gradient as a penalty."""

    name = "gradient_penalty"
    claims = Claims(slots=frozenset({"step:passes"}))
    step_copies = 2

    class Config(MethodConfig):
        """Settings of the penalty."""

        rho: float = Field(0.01, ge=0)
        """Factor of the norm; 0 is the host method alone."""
        mu: float = Field(0.01, gt=0)
        """Length of the finite difference."""
        loss: Literal["forget", "task"] = "forget"
        """Whose loss: that of the rows to forget, or of the task."""
        norm: Literal["whole", "tensors"] = "whole"
        """Of the gradient over all trained tensors, or the sum of each tensor's."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.step_passes = 2.0 if config.rho else 1.0

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """Gradient here, gradient a little further along it, and everything else."""
        c = self.config
        mine, rest = parted(step.streams, FORGET_STREAMS if c.loss == "forget" else ("task",))
        if not mine or not c.rho:
            step.accumulate()
            return
        step.accumulate(mine)
        here = step.take()
        norm = step.norm(here)
        ctx.log("gradient_penalty/norm", norm)
        move = along([(here, c.mu * inverse(norm))]) if c.norm == "whole" else to_unit_tensors(here, c.mu)
        with step.moved(move):
            step.accumulate(mine)
        there = step.take()
        step.add(here, 1 - c.rho / c.mu)
        step.add(there, c.rho / c.mu)
        if rest:
            step.accumulate(rest)
