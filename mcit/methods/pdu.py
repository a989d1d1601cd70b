"""PDU: flatten the logits of rows to forget under a budget of retained loss, whose weight finds itself.

Paper: Entesari et al., "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models", 2025,
arXiv:2506.05314: ``(max logit - mean logit)^2`` on rows to forget, subject to ``R <= budget`` on retained ones; the
multiplier of R takes a step of dual ascent after each step, ``lambda <- max(0, lambda + dual_step (R - budget))``.
Hooks: streams (rows to forget), on_stage_start (the multiplier, the budget), loss_term (streams ``forget`` and
``task``), after_step (dual ascent).
State: "dual", the multiplier; "budget".
Shapes: N supervised tokens, V vocabulary.

Means are over the answer tokens of the step; the released code's forget loss is over all positions, padding included.
The paper gives the budget as a number per data set; ``start`` (ours) is the retained loss of the stage-start model.
"""

from __future__ import annotations

from typing import Literal

import torch

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Batch, JsonDict, LossSum, ModelOutput
from mcit.methods.formulas.forgetting import LOOKED_AT, drawn
from mcit.methods.formulas.importances import loss_on
from mcit.methods.formulas.objectives import peak
from mcit.methods.objective import Objective


class PDU(Objective):
    """Flat logits under a retained-loss budget."""

    name = "pdu"
    replaces = True

    class Config(MethodConfig):
        """Settings of the constraint."""

        gamma: float = Field(1.0, gt=0)
        """Factor of the forget loss."""
        alpha: float = Field(1.0, ge=0)
        """The multiplier at the start."""
        budget: Literal["start"] | float = "start"
        """Retained loss per token that is allowed."""
        dual_step: float = Field(1.0, ge=0)
        """Step of the dual ascent; 0 keeps the multiplier."""
        warmup: int = Field(0, ge=0)
        """Steps before the multiplier moves."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._dual, self._budget = float(config.alpha), 0.0
        self._sum: torch.Tensor | float = 0.0

    def on_stage_start(self, ctx: StageContext) -> None:
        """The multiplier starts anew; the budget on retained rows drawn by the stage's seed."""
        self._dual = float(self.config.alpha)
        self._budget = 0.0 if self.config.budget == "start" else float(self.config.budget)
        if self.config.budget == "start":
            self._budget = loss_on(ctx, drawn(ctx.data.stage_rows(), LOOKED_AT, ctx.seed))

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """Squared margin of the largest logit over the mean."""
        return LossSum(peak(out.logits_NV).sum())

    def retain_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """The retained loss times its multiplier."""
        if not ctx.again:
            self._sum = self._sum + out.nll_N.detach().double().sum()
        return LossSum(self._dual * out.nll_N.sum())

    def after_step(self, ctx: StepContext) -> None:
        """A step of dual ascent."""
        total = torch.as_tensor(self._sum, dtype=torch.float64).cpu()
        retained = float(ctx.all_sum(total)) / ctx.counts.of("task", "tokens")
        self._sum = 0.0
        ctx.log("pdu/dual", self._dual)
        if ctx.step >= self.config.warmup:
            self._dual = max(0.0, self._dual + self.config.dual_step * (retained - self._budget))

    def state_dict(self) -> JsonDict:
        """The multiplier and the budget."""
        return {"dual": self._dual, "budget": self._budget}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self._dual, self._budget = float(state["dual"]), float(state["budget"])
