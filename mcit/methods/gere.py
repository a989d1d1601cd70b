"""GeRe: train on a fixed pool of general samples and keep their hidden features in the state the base model had them in.

Paper: "GeRe: Towards Efficient Anti-Forgetting in Continual Learning of LLM via General Samples Replay", 2025,
arXiv:2508.04676, and its authors' code.
Hooks: streams (``gere``, rows of the pool), on_stage_start (states of the base model, once per run), loss_term, after_step
(step values over all ranks; the dynamic weight).
State: "states", the fingerprint of the run's states (a file of the run named by it, 2 bits per position and feature; nothing
grows with stages), and "weight", the coming step's dynamic weight.

The reference is the run's base model in whatever stage the method first appears: its last hidden states, after the final
norm, at text positions. Thresholds are mean plus and minus `multiplier` standard deviations per feature over all rows of a
type (text, image-text). With n task rows and g general rows in a step, ``CE`` a mean over answer tokens and ``TM`` a mean
over general rows of the row's own mean violation, `combine` gives, whatever the micro-batches are (w is `weight`)
  rows:   n/(n+g) CE_T + g/(n+g) (CE_G + w TM)     what the authors' code amounts to at one row per micro-batch, their setting
  halves: (CE_T + CE_G) / 2 + w TM                 their formula for a micro-batch that holds both
  sum:    CE_T + CE_G + w TM
The share of the task loss is put right by a negative term on stream ``task``; other methods' losses keep their size.
Differs from the authors' code: answer tokens are averaged over the step, not per row; statistics in float64; the dynamic
weight is CE / TM of the previous step over all ranks (CE of the general rows; under ``halves`` the mean of both), at most
`weight_limit`, and 1 until a first ratio below that limit (at the base TM is 0); the last group of an epoch is not short,
the next epoch fills it; ``kl`` is a mean over supervised tokens, where their helper, never called, takes all positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import Blob, DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, Plan, PoolSize, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.general import real_rows
from mcit.methods.formulas.general_loss import feature_sum, kl_sum
from mcit.methods.formulas.general_states import built, check_same, fingerprint
from mcit.methods.formulas.margin import combined, dynamic_weight, shares
from mcit.methods.formulas.sums import StepSums
from mcit.methods.planning.gere import gere_problems, kept_bytes, pool_rows

STREAM = "gere"


class GeRe(Method):
    """General samples in every step, and a margin for their hidden features."""

    name = "gere"
    claims = Claims(needs=frozenset({"hidden:last", "reference:base"}), streams=frozenset({STREAM}))

    class Config(MethodConfig):
        """Settings of pool, mixing and loss."""

        weight: Annotated[float, Field(ge=0)] | Literal["dynamic"] = 100.0
        """Factor w of the added loss: a number (1 or 100 in the paper) or ``dynamic``; 0 switches the method off."""
        weight_limit: float = Field(1000.0, gt=0)
        """Largest dynamic weight; the authors set none, and it grows without bound as violations vanish."""
        recipe: str = "general/default"
        """Recipe of the pool: plain texts or conversations, with or without images."""
        variant: Literal["tm", "label", "kl", "l1", "l2"] = "tm"
        """Added loss: threshold margin; none (label fitting); KL of logits; mean absolute or squared feature difference."""
        mix: Literal["insert", "natural"] = "insert"
        """``insert``: `per_step` general rows on top of ``optim.batch`` task rows; ``natural``: shuffled among them."""
        per_step: int = Field(6, ge=1)
        """General rows per step under ``insert``; the paper's BI 6:60 is this with ``optim.batch: 60``."""
        combine: Literal["rows", "halves", "sum"] = "rows"
        """How task and general losses add up."""
        reduction: Literal["rows", "authors"] = "rows"
        """``authors`` averages violations over the whole micro-batch: one rank and one micro-batch of the stream per step."""
        multiplier: float = Field(1.0, ge=0)
        """Standard deviations from the mean to a threshold; 1 in the authors' code."""
        max_length: int = Field(563, ge=2)
        """Tokens after which a plain text is cut; 563 in the authors' code."""
        bos: bool = False
        """Put the tokenizer's start token before plain texts; the authors do not."""
        temperature: float = Field(2.0, gt=0)
        """Of both distributions in ``kl``."""
        top_k: int = Field(64, ge=1)
        """Tokens of the reference distribution kept for ``kl``; the rest of the vocabulary counts as one token."""

    def __init__(self, config: GeRe.Config) -> None:
        super().__init__(config)
        self._states: JsonDict | None = None
        self._weight: float | None = None
        self._sums = StepSums()

    @property
    def _off(self) -> bool:
        return self.config.weight == 0

    @property
    def _mixed(self) -> bool:
        return self.config.mix == "natural"

    # ---- before a model exists --------------------------------------------------------------------------------------
    def recipes(self) -> tuple[str, ...]:
        """The pool."""
        return () if self._off else (self.config.recipe,)

    def run_bytes(self, pools: Mapping[str, PoolSize], *, hidden: int) -> int:
        """What is kept of the base."""
        return 0 if self._off else kept_bytes(self.config, pools[self.config.recipe], hidden=hidden)

    def mixed_rows(self, pools: Mapping[str, int]) -> int:
        """All rows of the pool under natural mixing."""
        return pools.get(self.config.recipe, 0) if self._mixed and not self._off else 0

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """See `gere_problems`."""
        return [] if self._off else gere_problems(self.config, stage, plan, name=self.name)

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over the pool."""
        if self._off:
            return {}
        rows = pool_rows(self.config, ctx)
        return {STREAM: StreamSpec(rows, 0 if self._mixed else self.config.per_step, mixed=self._mixed)}

    # ---- in a stage -------------------------------------------------------------------------------------------------
    def on_stage_start(self, ctx: StageContext) -> None:
        """Compute the base's states of the pool if this run has none yet. Raises StateError if it has other ones."""
        if not self._off and self.config.variant != "label":
            self._blob(ctx)

    def _blob(self, ctx: StepContext) -> Blob:
        """The states of this run; computed again when the file is gone."""
        now = fingerprint(self.config, ctx)
        check_same(self._states, now, where=f"stage {ctx.stage.name}, method {self.name}")
        self._states = now
        return ctx.blob(STREAM, now, lambda: built(self.config, ctx, pool_rows(self.config, ctx.data)))

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """On ``gere`` the general loss; on ``task`` what `combine` takes from the task loss."""
        if self._off or batch.stream not in ("task", STREAM):
            return None
        rows = ctx.counts.rows
        of_task, of_general = shares(rows.get("task", 0), rows.get(STREAM, 0), self.config.combine)
        nll = out.nll_N.sum()
        self._sums.add(batch.stream, nll, ctx)
        if batch.stream == "task":
            return None if of_task == 1 else LossSum((of_task - 1) * nll, per="tokens")
        count = ctx.counts.of(STREAM, "rows")
        loss = of_general * nll * (count / ctx.counts.of(STREAM, "tokens"))
        added = self._added(out, batch, ctx, count)
        if added is not None:
            self._sums.add("added", added, ctx)
            factor = of_general if self.config.combine == "rows" else 1.0
            loss = loss + factor * self._factor() * added
        return LossSum(loss, per="rows")

    def _factor(self) -> float:
        if self.config.weight != "dynamic":
            return float(self.config.weight)
        return 1.0 if self._weight is None else self._weight

    def _added(self, out: ModelOutput, batch: Batch, ctx: StepContext, count: int) -> Tensor | None:
        """The added loss as a sum over rows; None without one, or when no row counts."""
        rows = real_rows(batch)
        if self.config.variant == "label" or not rows:
            return None
        blob = self._blob(ctx)
        if self.config.variant == "kl":
            tokens = ctx.counts.of(STREAM, "tokens")
            return kl_sum(out, batch, blob, rows, temperature=self.config.temperature) * (count / tokens)
        together = count if self.config.reduction == "authors" else 0
        return feature_sum(out, batch, blob, rows, variant=self.config.variant, together=together)

    def after_step(self, ctx: StepContext) -> None:
        """Log the step's values over all ranks, and derive the next step's weight from them."""
        sums = self._sums.take(("task", STREAM, "added"), ctx)
        if sums is None or not ctx.counts.rows.get(STREAM, 0):
            return
        counts = [ctx.counts.of("task", "tokens"), ctx.counts.of(STREAM, "tokens"), ctx.counts.of(STREAM, "rows")]
        means = sums / torch.tensor(counts, device=sums.device)
        ctx.log("gere/ce", means[1])
        if self.config.variant == "label":
            return
        ctx.log(f"gere/{self.config.variant}", means[2])
        if self.config.weight == "dynamic":
            ctx.log("gere/weight", self._factor())
            task, general, added = means.tolist()
            with_task = self.config.combine == "halves" and ctx.counts.rows.get("task", 0)
            ce = combined(task if with_task else None, general)
            weight = dynamic_weight(ce, added, self.config.weight_limit)
            # At the base nothing is violated but by rounding, and the limit would hit the first real violations.
            if self._weight is not None or weight < self.config.weight_limit:
                self._weight = weight

    # ---- state ------------------------------------------------------------------------------------------------------
    def state_dict(self) -> JsonDict:
        """Fingerprint of the states, and the coming step's dynamic weight."""
        return {"states": self._states, "weight": self._weight}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take both back. Raises StateError for keys it does not know."""
        super().load_state_dict({k: v for k, v in state.items() if k not in ("states", "weight")})
        self._states, self._weight = state["states"], state["weight"]
