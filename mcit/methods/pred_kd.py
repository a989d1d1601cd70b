"""Prediction distillation in the form of the rehearsal-free study: one binary cross-entropy over candidate tokens.

Paper: the PredKD of Smith et al., "A Closer Look at Rehearsal-Free Continual Learning", CVPR Workshops 2023,
arXiv:2203.17269, section 3, as its released code has it: sigmoid outputs, the new class's target 1, the old classes'
targets sigmoid(teacher), one binary cross-entropy over all of them, no temperature and no factor between the two.
Hooks: loss_term (stream ``task``; in place of the language-model loss with ``form: bce``).
State: none; the reference is the engine's.
Shapes: N supervised tokens, V vocabulary, K candidates.

A vocabulary takes the place of the classes: the gold token is the new class, and the old ones are the `candidates`
likeliest tokens of the stage-start model at that position (all of the vocabulary if 0). Before `from_stage` the loss is the
ordinary one. ``form: kl`` keeps the ordinary loss and adds the divergence of `lwf`.
"""

from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput
from mcit.methods.base import Method
from mcit.methods.formulas.divergence import candidate_bce, distillation_kl


class PredKD(Method):
    """Distil next-token predictions of the stage-start model on the new task's answers."""

    name = "pred_kd"

    class Config(MethodConfig):
        """Settings of the distillation."""

        weight: float = Field(1.0, ge=0)
        """Factor of the loss; the released code has none. 0 leaves the ordinary loss alone."""
        form: Literal["bce", "kl"] = "bce"
        """Binary cross-entropy over candidates in place of the task's loss, or a divergence beside it."""
        candidates: int = Field(64, ge=0)
        """Likeliest tokens of the teacher that count as old classes; 0 is the whole vocabulary."""
        temperature: float = Field(2.0, gt=0)
        """Of ``form: kl``; see `lwf`."""
        from_stage: int = Field(2, ge=1)
        """First stage in which it acts."""

    @property
    def claims(self) -> Claims:
        """``bce`` takes the place of the task's loss."""
        if self.config.weight == 0:
            return Claims()
        slots = frozenset({"objective:task"}) if self.config.form == "bce" else frozenset()
        return Claims(slots=slots, needs=frozenset({"reference:stage_start"}))

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Sum over the supervised tokens of stream ``task``."""
        if batch.stream != "task" or self.config.weight == 0:
            return None
        early = ctx.stage.index < self.config.from_stage
        if self.config.form == "bce":
            if early:
                return LossSum(out.nll_N.sum(), per="tokens")
            teacher_NV = ctx.reference(batch).logits_NV
            loss_N = candidate_bce(out.logits_NV, teacher_NV, out.targets_N, candidates=self.config.candidates)
        elif early:
            return None
        else:
            loss_N = distillation_kl(out.logits_NV, ctx.reference(batch).logits_NV, self.config.temperature)
        return LossSum(self.config.weight * loss_N.sum(), per="tokens")
