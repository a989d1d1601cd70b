"""UNDIAL: distil the stage-start model with the true token's logit lowered.

Paper: Dong et al., "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models",
NAACL 2025, arXiv:2402.10052: the target at each answer token is ``softmax(z_ref - strength * onehot(truth))``.
Hooks: streams (rows to forget), loss_term (streams ``forget`` and ``task``).
State: none; the reference is the engine's.
Shapes: N supervised tokens, V vocabulary.

A mean over answer tokens; the released code averages over all positions, padding included. The released settings have
no retained rows: ``alpha: 0``. The target is bounded, so this never diverges. Distributions of the reference are
computed beside each step: stored they would take a vocabulary per token.
"""

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, LossSum, ModelOutput
from mcit.methods.formulas.objectives import lowered
from mcit.methods.objective import Objective


class Undial(Objective):
    """Self-distillation away from the truth."""

    name = "undial"

    class Config(MethodConfig):
        """Settings of the target."""

        strength: float = Field(10.0, ge=0)
        """What is taken off the true token's logit (beta); 10 in open-unlearning's config."""
        gamma: float = Field(1.0, ge=0)
        """Factor of the forget loss."""
        alpha: float = Field(0.0, ge=0)
        """Factor of the retained rows' loss."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    @property
    def needs(self) -> frozenset[str]:
        """The stage-start model's logits."""
        return frozenset({"reference:stage_start"})

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """Cross-entropy to the lowered reference."""
        teacher_NV = ctx.reference(batch).logits_NV
        return LossSum(lowered(out.logits_NV, teacher_NV, out.targets_N, self.config.strength).sum())
