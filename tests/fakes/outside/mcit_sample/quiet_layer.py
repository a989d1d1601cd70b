"""A method that reads one layer of rows whose forward pass ends there, and rows that only a pass reads.

Paper: none; a stand-in for losses on inner states, such as RMU, arXiv:2403.03218.
Hooks: streams (one that ends after a layer, one that no step reads), on_stage_start, loss_term (size of prompt states).
State: tensor "start"/"size", the mean size of the last states of the unread rows at the start of the stage.
"""

from collections.abc import Mapping

import torch

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput, StreamSpec
from mcit.methods.base import Method


class QuietLayer(Method):
    """Small states on prompts in the middle of the model, relative to the last layer's at the start."""

    name = "quiet_layer"
    claims = Claims(needs=frozenset({"hidden:0.5", "hidden:last"}), streams=frozenset({"quiet", "unread"}))

    class Config(MethodConfig):
        """Settings of the loss."""

        weight: float = Field(0.1, ge=0)
        """Factor of the mean squared state; 0 opens no stream."""

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The stage's rows, twice."""
        if self.config.weight == 0:
            return {}
        rows = ctx.stage_rows()
        return {"quiet": StreamSpec(rows, 4, until="0.5"), "unread": StreamSpec(rows[:6])}

    def on_stage_start(self, ctx: StageContext) -> None:
        """Measure the rows that no step reads."""
        if self.config.weight:
            sizes = [out.hidden["last"].float().pow(2).mean() for _, out in ctx.forward_pass("unread")]
            self.tensors.put("start", "size", torch.stack(sizes).mean())

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Mean square over the width, summed over rows."""
        if batch.stream != "quiet":
            return None
        states = out.hidden["0.5"].float()
        prompt_BT = batch.prompt_BT.to(states.device)
        size_B = (states.pow(2).mean(-1) * prompt_BT).sum(1) / prompt_BT.sum(1)
        start = self.tensors.get("start", "size")
        real = [k for k in range(len(batch.rows)) if bool(batch.answer_BT[k].any())]
        return LossSum(self.config.weight * size_B[real].sum() / (1 + float(start)), per="rows")
