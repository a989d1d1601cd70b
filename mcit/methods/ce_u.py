"""CE-U: fit the model's own distribution with the true token taken out.

Paper: Yang, "CE-U: Cross Entropy Unlearning", 2025, arXiv:2503.01224. The target at each answer token is the model's
present distribution with the true token's logit at minus infinity, held constant.
Hooks: streams (rows to forget), loss_term (streams ``forget`` and ``task``).
State: none.
Shapes: N supervised tokens, V vocabulary.

A mean over the answer tokens that count; the first of each answer does not (the paper's training settings). The
released code has no retained rows: ``alpha: 0``.
"""

from collections.abc import Mapping

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import DataContext, StepContext
from mcit.core.types import Batch, LossSum, ModelOutput, StreamSpec
from mcit.methods.formulas.forgetting import one_answer_each, pushed_in_step, pushed_tokens
from mcit.methods.formulas.objectives import without_truth
from mcit.methods.objective import Objective


class CEU(Objective):
    """Cross-entropy to everything but the truth."""

    name = "ce_u"

    class Config(MethodConfig):
        """Settings of the loss."""

        skip_first: bool = True
        """Leave the first token of each answer alone."""
        gamma: float = Field(1.0, ge=0)
        """Factor of the forget loss."""
        alpha: float = Field(0.0, ge=0)
        """Factor of the retained rows' loss; the released code has none."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows to forget. Raises DataError for one with several answers, which begins more than once."""
        if self.on and self.config.skip_first:
            one_answer_each(ctx.forget_rows(), without="skip_first: false")
        return super().streams(ctx)

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """The mean over the tokens that count, as a sum over rows."""
        head = int(self.config.skip_first)
        loss_N = without_truth(out.logits_NV, out.targets_N) * pushed_tokens(out.row_N, head=head, tail=0)
        share = ctx.counts.of("forget", "rows") / pushed_in_step(ctx.counts, [head, 0])
        return LossSum(share * loss_N.sum(), per="rows")
