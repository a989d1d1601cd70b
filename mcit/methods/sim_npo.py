"""SimNPO: NPO without a reference, on the answer's loss per token.

Paper: Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning", 2024,
arXiv:2410.07163: ``-(2 / beta) log sigmoid(beta (M - delta))`` per row, M the mean token loss of the answer.
Hooks: streams (rows to forget), loss_term (streams ``forget`` and ``task``).
State: none.
Shapes: B rows, N supervised tokens.

The sign of `delta` is that of open-unlearning's code, whose settings are the defaults. The push is that of ascent while M is
small and is gone once M is well above ``delta + 1 / beta``: at the default delta of 0 it ends early, so raise delta to the
loss per token that is wanted.
"""

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, LossSum, ModelOutput
from mcit.methods.formulas.objectives import preference, row_sums
from mcit.methods.objective import Objective, real


class SimNPO(Objective):
    """Preference against answers to forget by their loss per token."""

    name = "sim_npo"

    class Config(MethodConfig):
        """Settings of the preference."""

        beta: float = Field(4.5, gt=0)
        """How soon the push fades."""
        delta: float = 0.0
        """Loss per token around which it fades."""
        gamma: float = Field(0.125, ge=0)
        """Factor of the forget loss."""
        alpha: float = Field(1.0, ge=0)
        """Factor of the retained rows' loss."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """The preference of each row."""
        sum_B, count_B = row_sums(out.nll_N, out.row_N, len(batch.rows))
        margin_B = sum_B / count_B.clamp_min(1) - self.config.delta
        return LossSum(real(preference(margin_B, self.config.beta), out).sum(), per="rows")
