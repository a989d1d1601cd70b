"""NPO: make answers to forget less likely than they were, with a push that fades once they are.

Paper: Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning", COLM 2024,
arXiv:2404.05868, equation 3: ``-(2 / beta) log sigmoid(beta (S - S_ref))`` per row, S the negative log-likelihood of
the answer summed over its tokens, S_ref that of the stage-start model.
Hooks: streams (rows to forget), on_stage_start (S_ref of every row), loss_term (streams ``forget`` and ``task``).
State: "reference", S_ref by row: it is constant, so it is computed once and costs no forward pass in a step.
Shapes: B rows, N supervised tokens.

Three forms of NPO are in circulation, and beta does not carry over between them. ``sum`` is the paper's. ``token_mean``
puts ``S / T`` in the place of S, as the released code for WMDP and RESTOR does; there it is one number per batch, here
one per row, and beta acts T times weaker. Differences of raw logits, which another released trainer takes, are an error
and are not offered.
"""

from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Batch, JsonDict, LossSum, ModelOutput
from mcit.methods.formulas.objectives import preference, row_sums
from mcit.methods.objective import Objective, of_rows, real, stored_sums


class NPO(Objective):
    """Negative preference of answers to forget against the stage-start model."""

    name = "npo"

    class Config(MethodConfig):
        """Settings of the preference."""

        beta: float = Field(0.1, gt=0)
        """How soon the push fades: at ``S - S_ref`` of about 1 / beta nats. 0.1 in the paper."""
        form: Literal["sum", "token_mean"] = "sum"
        """Of the answer's log-likelihood: its sum, as in the paper, or its mean over tokens."""
        gamma: float = Field(1.0, ge=0)
        """Factor of the forget loss."""
        alpha: float = Field(1.0, ge=0)
        """Factor of the retained rows' loss."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    def on_stage_start(self, ctx: StageContext) -> None:
        """S_ref of the rows to forget."""
        self.reference = stored_sums(ctx, list(ctx.data.forget_rows())) if self.on else {}

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """The preference of each row."""
        sum_B, count_B = row_sums(out.nll_N, out.row_N, len(batch.rows))
        margin_B = sum_B - of_rows(self.reference, batch, sum_B)
        if self.config.form == "token_mean":
            margin_B = margin_B / count_B.clamp_min(1)
        return LossSum(real(preference(margin_B, self.config.beta), out).sum(), per="rows")

    def state_dict(self) -> JsonDict:
        """S_ref by row."""
        return {"reference": self.reference}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self.reference = dict(state["reference"])
