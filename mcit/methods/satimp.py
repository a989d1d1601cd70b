"""SatImp and WGA: ascent whose tokens weigh by how likely they still are.

Paper: Yang et al., "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning", ICML 2025, arXiv:2505.11953: the
loss of a token of probability p weighs ``p^beta1 (1 - p)^beta2`` (saturation and importance). With `beta2` 0 it is WGA
of Wang et al., "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond", ICLR 2025,
arXiv:2502.19301: preset ``wga``.
Hooks: streams (rows to forget), loss_term (streams ``forget`` and ``task``).
State: none.
Shapes: N supervised tokens.

Weights are constants of the step; the loss is minus the mean over the answer tokens. A token that is forgotten has p
near 0 and is no longer pushed, which bounds the ascent.
"""

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, LossSum, ModelOutput
from mcit.methods.formulas.objectives import reweighted
from mcit.methods.objective import Objective


class SatImp(Objective):
    """Weighted ascent on rows to forget."""

    name = "satimp"

    class Config(MethodConfig):
        """Settings of the weights."""

        beta1: float = Field(5.0, ge=0)
        """Exponent of p."""
        beta2: float = Field(1.0, ge=0)
        """Exponent of 1 - p."""
        gamma: float = Field(0.1, ge=0)
        """Factor of the forget loss."""
        alpha: float = Field(1.0, ge=0)
        """Factor of the retained rows' loss."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """Minus the weighted token losses."""
        return LossSum(-reweighted(out.nll_N, self.config.beta1, self.config.beta2).sum())
