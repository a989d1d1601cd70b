"""RMU: move hidden states of rows to forget to a random direction, hold those of retained rows.

Paper: Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning", ICML 2024,
arXiv:2403.03218, section 4: ``gamma |h - c u|^2`` on rows to forget and ``alpha |h - h_ref|^2`` on retained ones, means
over the features and answer tokens of a row and then over rows; u is a unit vector drawn from U(0, 1) per feature.
Hooks: streams (rows to forget), on_stage_start (the direction), loss_term (streams ``forget`` and ``task``).
State: tensors "direction" (D,) by stage.
Shapes: B rows, T positions, D hidden.

One direction per request: vectors of U(0, 1) all lie in one corner, so from the second request on the new one is taken
without its parts along those of earlier stages (ours; it is orthogonal to them). The paper trains the down projections
of three blocks up to the layer, which ``adapter.targets`` can say. h_ref is computed beside each step: stored it would
take D numbers per token.
"""

from __future__ import annotations

from typing import Literal

import torch

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.seeds import seed_for
from mcit.core.types import Batch, LossSum, ModelOutput
from mcit.methods.formulas.objectives import activation_distance, apart
from mcit.methods.objective import Objective, real


class RMU(Objective):
    """Hidden states of rows to forget go to a direction of their own."""

    name = "rmu"

    class Config(MethodConfig):
        """Settings of the misdirection."""

        layer: str = "0.25"
        """Whose states: a number of blocks, a share of the depth (the paper: the 8th of 32) or a module's name."""
        steering: float = Field(2.0, gt=0)
        """Length of the target vector (c): 2 in open-unlearning's config, 6.5 to 20 in the paper's."""
        retain: Literal["hidden", "loss"] = "hidden"
        """What holds retained rows: their hidden states, in place of their loss, or their loss."""
        positions: Literal["answers", "with_prompt_end"] = "answers"
        """Answer tokens, or (ours) the prompt's last token too."""
        gamma: float = Field(1.0, ge=0)
        """Factor on rows to forget."""
        alpha: float = Field(1.0, ge=0)
        """Factor on retained rows."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    @property
    def replaces(self) -> bool:
        """States take the place of the task's loss."""
        return self.on and (self.config.retain == "hidden" or super().replaces)

    @property
    def needs(self) -> frozenset[str]:
        """The layer, of the model and, for retained rows, of the reference."""
        held = self.config.retain == "hidden" and self.config.alpha
        return frozenset({f"hidden:{self.config.layer}", *(["reference:stage_start"] if held else [])})

    def on_stage_start(self, ctx: StageContext) -> None:
        """Draw the direction of this request."""
        for _, out in ctx.forward_pass("forget", rows=1, limit=1) if self.on else ():
            size = out.hidden[self.config.layer].shape[-1]
            generator = torch.Generator().manual_seed(seed_for(ctx.stage.seed, "rmu"))
            earlier = [self.tensors.require("direction", name) for name in self.tensors.names("direction")]
            new_D = apart(torch.rand(size, generator=generator), [d_D for d_D in earlier if len(d_D) == size])
            self.tensors.put("direction", ctx.stage.folder, new_D)

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """Distance of the rows to forget from their target."""
        target_D = self.config.steering * self.tensors.require("direction", ctx.stage.folder)
        return self._distance(out, batch, target_D)

    def retain_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Distance of retained rows from where they were, or their loss."""
        if self.config.retain == "loss" or not self.config.alpha:
            return super().retain_loss(out, batch, ctx)
        old_BTD = ctx.reference(batch).hidden[self.config.layer]
        return LossSum(self.config.alpha * self._distance(out, batch, old_BTD).sum, per="rows")

    def _distance(self, out: ModelOutput, batch: Batch, target: torch.Tensor) -> LossSum:
        hidden_BTD = out.hidden[self.config.layer]
        mask_BT = batch.answer_BT
        if self.config.positions == "with_prompt_end":
            mask_BT = mask_BT | batch.predicts_BT
        target = target.to(hidden_BTD.device)
        away_B = activation_distance(hidden_BTD, target.expand_as(hidden_BTD), mask_BT.to(hidden_BTD.device))
        return LossSum(real(away_B, out).sum(), per="rows")
