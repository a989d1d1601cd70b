"""Retention by divergence: on retained rows, stay with the stage-start model's distributions instead of fitting their
answers.

Paper: the KL minimisation of Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024, arXiv:2401.06121,
section 3 (retained rows are held by ``KL(ref || model)`` beside ascent on the others): preset ``kl_min``. It goes
beside any forget objective.
Hooks: loss_term (stream ``task``, in place of the language-model loss).
State: none; the reference is the engine's.
Shapes: N supervised tokens, V vocabulary.

A mean over the answer tokens of the step, in fp32. The released code of open-unlearning and SafeEraser averages over
all positions of the padded batch, prompt, image and padding included; the engine keeps no logits there, and they say
nothing about answers. The reference's distributions are computed beside each step: stored they would take a vocabulary
per token.
"""

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput
from mcit.methods.base import Method
from mcit.methods.formulas.divergence import distillation_kl


class RetainKL(Method):
    """Divergence from the stage-start model on the task's answers, in place of their loss."""

    name = "retain_kl"

    class Config(MethodConfig):
        """Settings of the divergence."""

        alpha: float = Field(1.0, ge=0)
        """Factor of the divergence; 0 leaves the usual loss."""

    @property
    def claims(self) -> Claims:
        """The task's loss, and the reference."""
        if not self.config.alpha:
            return Claims()
        return Claims(slots=frozenset({"objective:task"}), needs=frozenset({"reference:stage_start"}))

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """``alpha * KL(ref || model)``, summed over the answer tokens."""
        if batch.stream != "task" or not self.config.alpha:
            return None
        kl_N = distillation_kl(out.logits_NV, ctx.reference(batch).logits_NV)
        return LossSum(self.config.alpha * kl_N.sum())
