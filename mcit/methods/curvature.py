"""Curvature regularisation: the forget gradient must not change along itself.

Paper: Fan et al., "Towards LLM Unlearning Resilient to Relearning Attacks", ICML 2025, arXiv:2502.05374, after
Moosavi-Dezfooli et al., arXiv:1811.09716: ``loss + rho |g(theta + mu v) - g(theta)|`` with ``v = g / |g|``.
Hooks: passes (the forget streams four times, everything else once).
State: none.

With d the difference, u = d / |d| and H, H' the Hessians here and at ``theta + mu v``, the gradient of ``|d|`` is ``w +
H z``, where ``w = H' u`` and ``z = (mu / |g|) (w - v (v.w)) - u``: the second part of z is how v turns. Both products
are finite differences of length `mu`, one along -u and one along z, which is close to -u, so that their errors cancel
to first order; four gradients are all of it, and nothing is taken as constant. In the released code the penalty has no
gradient and the inner pass doubles the forget gradient; it is not registered either, so there is nothing published to
compare with.
"""

from __future__ import annotations

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext, StepPasses
from mcit.core.types import Claims
from mcit.methods.base import Method
from mcit.methods.formulas.smoothing import FORGET_STREAMS, along, inverse, norm_of, parted


class Curvature(Method):
    """The change of the forget gradient along itself as a penalty."""

    name = "curvature"
    claims = Claims(slots=frozenset({"step:passes"}))
    step_copies = 5

    class Config(MethodConfig):
        """Settings of the penalty."""

        rho: float = Field(0.01, ge=0)
        """Factor of the change; 0 is the host method alone."""
        mu: float = Field(0.01, gt=0)
        """How far along the gradient it is measured, and the length of the finite differences."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.step_passes = 4.0 if config.rho else 1.0

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """Four forget gradients, their sum, and everything else."""
        c = self.config
        forget, rest = parted(step.streams, FORGET_STREAMS)
        if not forget or not c.rho:
            step.accumulate()
            return
        step.accumulate(forget)
        g = step.take()
        to_v = inverse(step.norm(g))
        there = [(g, c.mu * to_v)]
        with step.moved(along(there)):
            step.accumulate(forget)
        ahead = step.take()
        difference = norm_of(step, [(ahead, 1.0), (g, -1.0)])
        ctx.log("curvature/change", difference)
        to_u = inverse(difference)
        u = [(ahead, to_u), (g, -to_u)]
        with step.moved(along([*there, *((held, -c.mu * x) for held, x in u)])):
            step.accumulate(forget)
        further = step.take()
        # w = (ahead - further) / mu
        v_w = to_v * (step.dot(g, ahead) - step.dot(g, further)) / c.mu
        turn = c.mu * to_v
        z = [(ahead, turn / c.mu - to_u), (further, -turn / c.mu), (g, to_u - turn * to_v * v_w)]
        length = norm_of(step, z)
        with step.moved(along([(held, c.mu * inverse(length) * x) for held, x in z])):
            step.accumulate(forget)
        aside = step.take()
        step.add(g, 1 - c.rho * length / c.mu)
        step.add(aside, c.rho * length / c.mu)
        step.add(ahead, c.rho / c.mu)
        step.add(further, -c.rho / c.mu)
        if rest:
            step.accumulate(rest)
