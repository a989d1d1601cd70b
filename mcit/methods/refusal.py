"""Something to say instead of what is forgotten: a refusal, another answer, or what the model says without the picture.

Paper: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024, arXiv:2401.06121, its "I don't know"
targets (refusals as labels on the rows to forget); the blind target is ours. The joint mean is the refusal fine-tuning
of Chen et al., "SafeEraser", arXiv:2502.12520 (its "PO"): preset ``idk``.
Hooks: streams (``refusal``: the rows to forget with other answers), on_stage_start (what all answers share, for the
blind target), loss_term (stream ``refusal``, or ``forget`` for the blind target; with a joint mean ``task`` too).
State: "spare", tokens at both ends of answers that the blind target leaves alone.
Shapes: N supervised tokens, V vocabulary.

``say: refusal`` is the token loss of refusals on rows of its own stream, ``alternate`` that of the stage's alternate
answers; with ``mean: joint`` retained and refused rows are one batch with one mean over all its tokens. ``say: blind``
is the divergence, on the answer tokens of stream ``forget``, from the stage-start model with the picture blanked:
another method of the stage opens that stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, Plan, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.divergence import distillation_kl
from mcit.methods.formulas.forgetting import (
    one_answer_each,
    pushed_in_step,
    pushed_tokens,
    seen_pictures,
    spared_ends,
    without_pictures,
)
from mcit.methods.formulas.refusals import REFUSALS, refused_row


class Refusal(Method):
    """A target for rows that are to be forgotten."""

    name = "refusal"

    class Config(MethodConfig):
        """Settings of the target."""

        say: Literal["refusal", "alternate", "blind"] = "refusal"
        """A refusal, the row's alternate answer, or what the stage-start model says without the picture."""
        mean: Literal["own", "joint"] = "own"
        """Of the refused rows' tokens alone, or of them together with the task's, as one batch."""
        omega: float = Field(0.5, ge=0)
        """Factor of the loss; 0 switches the method off."""
        per_step: int = Field(8, ge=1)
        """Rows with refusals per optimiser step."""
        refusals: list[str] = Field(list(REFUSALS), min_length=1)
        """One of these per row, drawn once."""
        spare: Literal["shared", "none"] = "shared"
        """``say: blind``: leave out what all answers of the stage begin or end with, such as the end marker."""

    def __init__(self, config: Refusal.Config) -> None:
        super().__init__(config)
        self._spare = [0, 0]

    @property
    def _on(self) -> str:
        """What is said; empty at a factor of 0."""
        return self.config.say if self.config.omega else ""

    @property
    def claims(self) -> Claims:
        """A stream of its own for what is said; the stream of rows to forget and the reference for the blind target."""
        if self._on == "blind":
            return Claims(needs=frozenset({"reference:stage_start", "stream:forget"}))
        slots = frozenset({"objective:task"} if self._on and self.config.mean == "joint" else ())
        return Claims(slots=slots, streams=frozenset({"refusal"} if self._on else ()))

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Rows to refuse must be there; refusals alone teach refusing in general."""
        where = f"stage {stage.name}, method {self.name}"
        if self._on == "blind" and self.config.mean == "joint":
            what = "mean: joint is for answers of their own, say: blind is a divergence"
            return [Problem(where, what, "set mean: own")]
        if self._on in ("", "blind"):
            return []
        if not stage.forget:
            return [Problem(where, "refuses rows, but the stage names none to forget", "name recipes in forget")]
        if self._on == "alternate":
            return []
        what = "refusals without rows that ask the same about other pictures teach refusing in general"
        return [Problem(where, what, "put such rows into the stage's recipe, with their usual answers", "note")]

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows to forget with refusals. Raises DataError for rows that a blind target does not fit."""
        rows = list(ctx.forget_rows()) if self._on else []
        if self._on == "blind":
            seen_pictures(rows, "which say: blind does", fix="use say: refusal")
            if self.config.spare == "shared":
                one_answer_each(rows)
        if self._on in ("", "blind"):
            return {}
        if self._on == "alternate":
            rows = list(ctx.alternate_rows())
        else:
            rows = [refused_row(row, self.config.refusals, ctx.seed) for row in rows]
        return {"refusal": StreamSpec(rows, self.config.per_step, follows="forget")}

    def on_stage_start(self, ctx: StageContext) -> None:
        """What answers share, of the model as it comes in."""
        shared = self._on == "blind" and self.config.spare == "shared"
        self._spare = list(spared_ends(ctx)) if shared else [0, 0]

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of what is said, or divergence from the blind reference as a mean over the pushed tokens of the step."""
        if batch.stream == "refusal" or (batch.stream == "task" and self.config.mean == "joint" and self._on):
            factor = self.config.omega if batch.stream == "refusal" else 1.0
            if self.config.mean == "joint":
                tokens = ctx.counts.tokens
                factor *= tokens.get(batch.stream, 0) / max(1, tokens.get("task", 0) + tokens.get("refusal", 0))
            return LossSum(factor * out.nll_N.sum(), per="tokens")
        if self._on != "blind" or batch.stream != "forget":
            return None
        head, tail = self._spare
        seen = ctx.reference(without_pictures(batch))
        kl_N = distillation_kl(out.logits_NV, seen.logits_NV) * pushed_tokens(out.row_N, head=head, tail=tail)
        share = ctx.counts.of("forget", "rows") / pushed_in_step(ctx.counts, self._spare)
        return LossSum(self.config.omega * share * kl_N.sum(), per="rows")

    def state_dict(self) -> JsonDict:
        """Spared tokens."""
        return {"spare": self._spare}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self._spare = list(state["spare"])
