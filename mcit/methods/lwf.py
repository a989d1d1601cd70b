"""LwF: while learning a new task, answer as the model did before the stage.

Paper: Li and Hoiem, "Learning without Forgetting", TPAMI 2018, arXiv:1606.09282, section 3, equations 2-4 (a distillation
loss of the old outputs on the new task's inputs). For an autoregressive model the old outputs are the next-token
distributions of the stage-start model at the supervised positions of the new rows.
Hooks: loss_term (every micro-batch of stream ``task``).
State: none; the reference is the engine's.
Shapes: N supervised tokens, V vocabulary.

Differs from the paper: it keeps one head per old task and distils each; here there is one vocabulary and one head. The loss
has the factor T^2 of Hinton et al. (arXiv:1503.02531), which keeps its gradient's size; LwF's own code has none.
Temperature 2 is the paper's (section 3, after equation 4).
"""

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput
from mcit.methods.base import Method
from mcit.methods.formulas.divergence import distillation_kl


class LwF(Method):
    """Distil the stage-start model's next-token distributions on the new task's answers."""

    name = "lwf"
    claims = Claims(needs=frozenset({"reference:stage_start"}))

    class Config(MethodConfig):
        """Settings of the distillation."""

        weight: float = Field(1.0, ge=0)
        """Factor of the distillation loss; 1 in the paper."""
        temperature: float = Field(2.0, gt=0)
        """Softens both distributions; 2 in the paper."""
        from_stage: int = Field(2, ge=1)
        """First stage in which it acts; before the second there is no earlier task to keep."""

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Sum over the supervised tokens of stream ``task``."""
        if batch.stream != "task" or self.config.weight == 0 or ctx.stage.index < self.config.from_stage:
            return None
        reference = ctx.reference(batch)
        kl_N = distillation_kl(out.logits_NV, reference.logits_NV, self.config.temperature)
        return LossSum(self.config.weight * kl_N.sum(), per="tokens")
