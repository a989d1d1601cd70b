"""LCIA: an exponential moving average of the weights whose share is worked out per tensor in every step.

Paper: Qiao et al., "Large Continual Instruction Assistant", ICML 2025, arXiv:2410.10868, the section on the dynamic EMA
update: with ``beta`` the share of the old average, minimising the Taylor expansion of the loss at the average gives
``beta = (L'(w) + 1) / ((w - average) L'')`` with ``L''`` as the quotient of the last two gradients, in L1 norms per tensor.
Hooks: on_stage_start (the average begins at the stage's start), before_step (reads the gradient), after_step (one step of
the average), on_stage_end (the average becomes the stage's weights; says how often the rule fell back).
State: tensors "ema", "gradient" (of the last step), "next" (of the present one) and, with `quotient`, "before" (the weights
before the step) by parameter name; "count" (steps per tensor that fell back, and all).

Three rules are in circulation: `paper` (role old, quotient, factor 1, fallback 0.99), the released code's (role new, no
quotient, factor 2, fallback 0.01) and that of Continual-NExT (factor 0.01, fallback 0.001): see ``configs/methods/lcia*.yaml``.
Differs from all three: the gradient is the one that led to the new weights, before clipping and read before it is cleared
(the released code reads it after the step, where accelerate with DeepSpeed has cleared it, so that it always falls back);
the first step, which has no earlier gradient, falls back; a tensor that did not move falls back, too. Instruction grouping
is a matter of adapter pools, not of this rule.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import Gradients, StageContext, StepContext
from mcit.core.types import Claims
from mcit.methods.base import Method
from mcit.methods.formulas.averaging import dynamic_share, moving_average, within_unit


class LCIA(Method):
    """Commit a moving average whose share follows the gradients."""

    name = "lcia"
    claims = Claims(slots=frozenset({"weights:edit"}))

    class Config(MethodConfig):
        """Settings of the rule."""

        role: Literal["old", "new"] = "old"
        """What the worked-out share weighs: the old average, as in the paper, or the new weights, as in the code."""
        quotient: bool = True
        """Multiply by ``|w - w_before|``, which the difference quotient for L'' asks for; the released code leaves it out."""
        factor: float = Field(1.0, gt=0)
        """Factor of the share; 1 in the paper, 2 in the released code, 0.01 in Continual-NExT."""
        fallback: float = Field(0.99, ge=0, le=1)
        """Share where the rule gives none between 0 and 1; of the same role as the rule's."""

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """Fp32 copies of every trained tensor: average, two gradients and, with the quotient, the weights before."""
        return (16 if self.config.quotient else 12) * sum(math.prod(shape) for shape in shapes.values())

    def on_stage_start(self, ctx: StageContext) -> None:
        """The average is what the stage starts with; no gradient is known yet."""
        for kind in ("ema", "gradient", "next", "before", "count"):
            self.tensors.drop(kind)
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    self.tensors.put("ema", unit.params[role], tensor)
                    if self.config.quotient:
                        self.tensors.put("before", unit.params[role], tensor)
        self.tensors.put("count", "fallback", torch.zeros((), dtype=torch.int64))
        self.tensors.put("count", "all", torch.zeros((), dtype=torch.int64))

    def before_step(self, grads: Gradients, ctx: StepContext) -> None:
        """Keep the gradient of this step; nothing is changed."""
        for unit in grads.units():
            for role, gradient in grads.full(unit).items():
                self.tensors.put("next", unit.params[role], gradient)

    def after_step(self, ctx: StepContext) -> None:
        """One step of every tensor's average."""
        shares, fell = [], []
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, now in tensors.items():
                    keep, bad = self._update(unit.params[role], now)
                    shares.append(keep)
                    fell.append(bad)
        missed = torch.stack(fell)
        ctx.log("lcia/keep", torch.stack(shares).mean())
        ctx.log("lcia/fallback", missed.float().mean())
        self.tensors.put("count", "fallback", self.tensors.require("count", "fallback") + missed.sum().cpu())
        self.tensors.put("count", "all", self.tensors.require("count", "all") + len(fell))

    def _update(self, name: str, now: Tensor) -> tuple[Tensor, Tensor]:
        """Average one tensor; the share of the old average and whether the rule fell back."""
        average = self.tensors.require("ema", name).to(now.device)
        gradient, last = self.tensors.require("next", name), self.tensors.get("gradient", name)
        before = self.tensors.require("before", name).to(now.device) if self.config.quotient else None
        share = now.new_full((), torch.nan)
        if last is not None:
            there = gradient.to(now.device), last.to(now.device)
            share = dynamic_share(now, average, *there, before=before, factor=self.config.factor)
        share, bad = within_unit(share, self.config.fallback)
        keep = share if self.config.role == "old" else 1 - share
        self.tensors.put("ema", name, moving_average(average, now, keep))
        self.tensors.put("gradient", name, gradient)
        if self.config.quotient:
            self.tensors.put("before", name, now)
        return keep, bad

    def on_stage_end(self, ctx: StageContext) -> None:
        """Write the average, say how often the rule fell back."""
        for unit in ctx.weights.units():
            with ctx.weights.edit(unit) as tensors:
                for role, tensor in tensors.items():
                    tensor.copy_(self.tensors.require("ema", unit.params[role]))
        total = self.tensors.require("count", "all").clamp(min=1)
        ctx.log("lcia/fallback_of_stage", self.tensors.require("count", "fallback") / total)
        for kind in ("ema", "gradient", "next", "before"):
            self.tensors.drop(kind)
