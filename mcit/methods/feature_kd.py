"""Feature distillation: keep hidden states of chosen layers where they were before the stage.

Paper: the FeatKD baseline of Smith et al., "A Closer Look at Rehearsal-Free Continual Learning", CVPR Workshops 2023,
arXiv:2203.17269, section 3: ``mu |h_new - h_old|^2`` on the new task's inputs; its released code takes the mean over features.
Hooks: loss_term (every micro-batch of stream ``task``).
State: none; the reference is the engine's.
Shapes: B rows, T positions, D features, P positions that count.

Positions are those that predict a supervised token (`answers`), or all real ones (`all`): for `answers` the loss is a mean over
the step's answer tokens, for `all` a mean over each row's positions and then over rows.
"""

from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput
from mcit.methods.base import Method
from mcit.methods.formulas.divergence import feature_distance


class FeatureKD(Method):
    """Squared distance of hidden states from the stage-start model's."""

    name = "feature_kd"

    class Config(MethodConfig):
        """Settings of the distillation."""

        weight: float = Field(1.0, ge=0)
        """Factor of the distance (mu). The paper's table does not state one; 1 is ours."""
        layers: list[str] = Field(["last"], min_length=1)
        """Layers: ``last`` (after the final norm), a number of blocks, a share of the depth, or a module's name."""
        reduction: Literal["mean", "sum"] = "mean"
        """Over the features of a position: mean as in the released code, or sum as in the formula."""
        positions: Literal["answers", "all"] = "answers"
        """Which positions count."""
        from_stage: int = Field(2, ge=1)
        """First stage in which it acts."""

    @property
    def claims(self) -> Claims:
        """The chosen layers, of the model and of the reference."""
        return Claims(needs=frozenset({"reference:stage_start", *(f"hidden:{layer}" for layer in self.config.layers)}))

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Sum over answer tokens, or over rows of their positions' mean; layers are averaged."""
        if batch.stream != "task" or self.config.weight == 0 or ctx.stage.index < self.config.from_stage:
            return None
        old = ctx.reference(batch).hidden
        mean = self.config.reduction == "mean"
        layers = [feature_distance(out.hidden[name], old[name], mean=mean) for name in self.config.layers]
        distance_BT = torch.stack(layers).mean(0)
        device = distance_BT.device
        if self.config.positions == "answers":
            return LossSum(self.config.weight * distance_BT[batch.predicts_BT.to(device)].sum(), per="tokens")
        real_BT = batch.attention_BT.bool().to(device)
        rows: list[Tensor] = [distance_BT[row][real_BT[row]].mean() for row in out.real_rows]
        return LossSum(self.config.weight * torch.stack(rows).sum(), per="rows") if rows else None
