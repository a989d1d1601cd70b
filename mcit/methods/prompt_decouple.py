"""Prompt decoupling: the question to forget, about a harmless picture, keeps its usual answer.

Paper: Chen et al., "SafeEraser: Enhancing Safety in Multimodal Large Language Models through Multimodal Machine
Unlearning", 2025, arXiv:2502.12520: the loss of (harmless picture, same question, normal answer) beside any forget
objective, so that the picture and not the wording of the question calls for the refusal.
Hooks: streams (``decouple``: one row per row to forget), loss_term (stream ``decouple``).
State: none.

Rows come from the stage's ``decouple`` or the rows' ``meta.decouple``. A stage that has neither makes them before it
starts: the picture of a retained row of another category, and what the stage-start model answers to the question about
it; refusals are filtered out, another picture is tried, and the answers are kept with the run. The weight is 0.5 whatever
stands beside it, the released code's beside ascent and gradient difference (whose retained loss it halves as well);
beside KL and refusals that has 1: set ``decouple_weight: 1`` there. Preset ``safe_eraser`` does.

A step reads the harmless rows of the very rows that it forgets or refuses, as stated in the paper: the stream follows the
order of ``forget``. In the released code the index is overwritten on the way, so that they are those of a random
retained row: ``authors_compat`` draws them on their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput, Plan, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.compose import make

STREAM = "decouple"


class PromptDecouple(Method):
    """Usual answers to the questions to forget about other pictures."""

    name = "prompt_decouple"

    class Config(MethodConfig):
        """Settings of the harmless rows."""

        decouple_weight: float = Field(0.5, ge=0)
        """Factor of their loss; 0 reads none."""
        per_step: int = Field(8, ge=1)
        """Harmless rows per optimiser step: as many as rows to forget."""
        authors_compat: bool = False
        """Draw them on their own, as the released code does, instead of beside the rows to forget that they belong to."""
        category: str = "answer"
        """What makes a retained picture another one: ``answer``, ``task``, ``folder`` (of the picture) or ``meta.<key>``."""
        tries: int = Field(3, ge=1)
        """Retained pictures that are tried for each row before it goes without."""
        max_new_tokens: int = Field(32, ge=1)
        """Longest answer that is made."""

    @property
    def claims(self) -> Claims:
        """The stream of harmless rows."""
        return Claims(streams=frozenset({STREAM} if self.config.decouple_weight else ()))

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Rows to forget must be there, and equally many of them per step."""
        if not self.config.decouple_weight:
            return []
        where = f"stage {stage.name}, method {self.name}"
        if not stage.forget:
            return [Problem(where, "decouples rows, but the stage names none to forget", "name recipes in forget")]
        for spec in stage.methods:
            size = getattr(spec.config, "per_step", self.config.per_step)
            if {"forget", "refusal"} & make(spec).claims.streams and size != self.config.per_step:
                what = f"reads {self.config.per_step} harmless rows per step, '{spec.name}' {size} rows to forget"
                if not self.config.authors_compat:
                    fix = f"set per_step: {size}, so that they belong together, or authors_compat: true"
                    return [Problem(where, what, fix)]
        return []

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One harmless row per row to forget. Raises DataError for a row that gets none."""
        if not self.config.decouple_weight:
            return {}
        c = self.config
        rows = ctx.decouple_rows(category=c.category, tries=c.tries, max_new_tokens=c.max_new_tokens)
        return {STREAM: StreamSpec(rows, c.per_step, follows="" if c.authors_compat else "forget")}

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of the usual answers."""
        return LossSum(self.config.decouple_weight * out.nll_N.sum()) if batch.stream == STREAM else None
