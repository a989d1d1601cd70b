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

import torch

from mcit.core.errors import Problem
from mcit.core.interfaces import Blob, DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, Plan, PoolSize, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.combination import LossWeight, combined, shares
from mcit.methods.formulas.general_loss import added_sum
from mcit.methods.formulas.general_states import built, check_same, fingerprint
from mcit.methods.formulas.sums import StepSums
from mcit.methods.planning.gere import GeReConfig, gere_problems, kept_bytes, pool_rows

STREAM = "gere"


class GeRe(Method):
    """General samples in every step, and a margin for their hidden features."""

    name = "gere"
    claims = Claims(needs=frozenset({"hidden:last", "reference:base"}), streams=frozenset({STREAM}))

    class Config(GeReConfig):
        """Settings of pool, mixing and loss."""

    def __init__(self, config: GeRe.Config) -> None:
        super().__init__(config)
        self._states: JsonDict | None = None
        self._weight = LossWeight(config.weight, config.weight_limit)
        self._sums = StepSums()

    @property
    def _off(self) -> bool:
        return self.config.weight == 0

    # ---- before a model exists --------------------------------------------------------------------------------------
    def recipes(self) -> tuple[str, ...]:
        """The pool."""
        return () if self._off else (self.config.recipe,)

    def run_bytes(self, pools: Mapping[str, PoolSize], *, hidden: int) -> int:
        """What is kept of the base."""
        return 0 if self._off else kept_bytes(self.config, pools[self.config.recipe], hidden=hidden)

    def mixed_rows(self, pools: Mapping[str, int]) -> int:
        """All rows of the pool under natural mixing."""
        return pools.get(self.config.recipe, 0) if self.config.mix == "natural" and not self._off else 0

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """See `gere_problems`."""
        return [] if self._off else gere_problems(self.config, stage, plan, name=self.name)

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over the pool."""
        if self._off:
            return {}
        rows, mixed = pool_rows(self.config, ctx), self.config.mix == "natural"
        return {STREAM: StreamSpec(rows, 0 if mixed else self.config.per_step, mixed=mixed)}

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
        loss = of_general * nll * (ctx.counts.of(STREAM, "rows") / ctx.counts.of(STREAM, "tokens"))
        added = added_sum(self.config, out, batch, ctx.counts, lambda: self._blob(ctx))
        if added is not None:
            self._sums.add("added", added, ctx)
            loss = loss + (of_general if self.config.combine == "rows" else 1.0) * self._weight.now * added
        return LossSum(loss, per="rows")

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
            ctx.log("gere/weight", self._weight.now)
            task, general, added = means.tolist()
            with_task = self.config.combine == "halves" and ctx.counts.rows.get("task", 0)
            self._weight.follow(combined(task if with_task else None, general), added)

    # ---- state ------------------------------------------------------------------------------------------------------
    def state_dict(self) -> JsonDict:
        """Fingerprint of the states, and the coming step's dynamic weight."""
        return {"states": self._states, "weight": self._weight.last}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take both back."""
        self._states, self._weight.last = state["states"], state["weight"]
