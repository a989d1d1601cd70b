"""Group mask: only the tokens that answers of the task use take part in its softmax.

Paper: Lesort et al., "Challenging Common Assumptions about Catastrophic Forgetting and Knowledge Accumulation", CoLLAs 2023,
arXiv:2207.04543 (masking of classes that are not in the task), after Caccia et al., arXiv:2104.05025; a vocabulary takes the
place of the classes.
Hooks: on_stage_start (collects the task's answer tokens), loss_term (in place of the language-model loss).
State: tensor "tokens" "task": sorted ids of the stage's answer tokens, end tokens included.
Shapes: N supervised tokens, V vocabulary, K allowed tokens.

Logits of all other tokens get no gradient. `by: task` is the paper's text; the released code takes the classes of the
mini-batch (`by: batch`), which has a meaning only if a step is one micro-batch on one process, and is refused otherwise.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem, TrainingError
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput, Plan, Stage
from mcit.methods.base import Method


class GroupMask(Method):
    """The task's loss with a softmax over its own answer tokens."""

    name = "group_mask"

    class Config(MethodConfig):
        """Settings of the mask."""

        weight: float = Field(1.0, ge=0, le=1)
        """1 masks; 0 leaves the ordinary loss alone. Between them the two losses are mixed."""
        by: Literal["task", "batch"] = "task"
        """Whose tokens are allowed."""

    @property
    def claims(self) -> Claims:
        """It takes the place of the task's loss."""
        return Claims(slots=frozenset({"objective:task"}) if self.config.weight else frozenset())

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """A mask of the batch needs whole batches."""
        if self.config.by == "batch" and plan.config.engine.micro_batch < stage.optim.batch:
            parts = plan.config.engine.micro_batch
            what = f"masks by batch, but a step of {stage.optim.batch} rows is cut into parts of {parts}"
            return [Problem("by", what, "set by: task, or engine.micro_batch to optim.batch on one process")]
        return []

    def on_stage_start(self, ctx: StageContext) -> None:
        """Read the labels of every row once; no block of the model runs."""
        if self.config.by != "task" or not self.config.weight:
            return
        seen = [batch.labels_BT[batch.answer_BT].unique() for batch, _ in ctx.forward_pass("task", change=_labels_only)]
        self.tensors.put("tokens", "task", torch.cat(seen).unique())

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Sum over the supervised tokens of stream ``task``."""
        if batch.stream != "task" or not self.config.weight:
            return None
        if self.config.by == "batch" and len(out.real_rows) != ctx.counts.of("task", "rows"):
            raise TrainingError(
                "a mask by batch needs the whole step in one micro-batch on one process",
                where=f"stage {ctx.stage.name}, step {ctx.step + 1}",
                fix="set by: task",
            )
        allowed_K = out.targets_N.unique() if self.config.by == "batch" else self.tensors.require("tokens", "task")
        loss_N = masked_nll(out.logits_NV, out.targets_N, allowed_K.to(out.targets_N.device))
        mixed_N = self.config.weight * loss_N + (1 - self.config.weight) * out.nll_N
        return LossSum(mixed_N.sum(), per="tokens")


def masked_nll(logits_NV: Tensor, targets_N: Tensor, allowed_K: Tensor) -> Tensor:
    """Negative log-likelihood of the targets in a softmax over the sorted ids `allowed_K` alone, fp32, (N,)."""
    logits_NK = logits_NV.index_select(-1, allowed_K).float()
    places_N = torch.searchsorted(allowed_K, targets_N)
    return torch.nn.functional.cross_entropy(logits_NK, places_N, reduction="none")


def _labels_only(batch: Batch) -> Batch:
    return replace(batch, until="0")
