"""GeRe: train on a fixed pool of general samples and keep their hidden features in the state the base model had them in.

Paper: "GeRe: Towards Efficient Anti-Forgetting in Continual Learning of LLM via General Samples Replay", 2025,
arXiv:2508.04676, and its authors' code.
Hooks: streams (``gere``, rows of the pool), on_stage_start (states of the base model, once per run), loss_term, after_step
(step values over all ranks; the dynamic weight).
State: "states", the fingerprint of the run's states, and "weight", the coming step's dynamic weight. The states are
a file of the run named by the fingerprint, 2 bits per position and feature, read piece by piece; nothing grows with stages.
Shapes: B rows, P constrained positions of a batch, D features, C = ceil(D / 8) bytes, K kept tokens.

The reference is the run's base model in whatever stage the method first appears; its hidden states are the last ones, after
the final norm. Thresholds are mean plus and minus `multiplier` standard deviations per feature over all positions of rows of
one type (text, image-text); only text positions are constrained, never image slots or padding.

Losses do not know micro-batches. With n task rows and g general rows in a step, ``CE`` a mean over answer tokens and ``TM`` a
mean over general rows of the row's own mean violation, `combine` gives (w is `weight`)
  rows:   n/(n+g) CE_T + g/(n+g) (CE_G + w TM)     what the authors' code amounts to at one row per micro-batch, their setting
  halves: (CE_T + CE_G) / 2 + w TM                 their formula for a micro-batch that holds both
  sum:    CE_T + CE_G + w TM
The share of the task loss is put right by a negative term on stream ``task``; other methods' losses keep their size.
``l1`` and ``l2`` compare at the precision that features are kept in, bf16: against a rounded reference the sign in l1's
gradient would be that of the rounding wherever a feature has not moved. ``kl`` is a mean over supervised tokens; their
helper, which they never call, takes all positions, padding included.
Differs from the authors' code: answer tokens are averaged over the step, not per row; statistics in float64; the dynamic
weight is CE / TM of the previous step over all ranks (CE of the general rows; under ``halves`` the mean of both), at most
`weight_limit`, and 1 until a first ratio below that limit (at the base TM is 0); the last group of an epoch is not short,
the next epoch fills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem, StateError, TrainingError
from mcit.core.interfaces import Blob, DataContext, StageContext, StepContext
from mcit.core.types import (
    Batch,
    Claims,
    Encoding,
    JsonDict,
    LossSum,
    ModelOutput,
    Plan,
    PoolSize,
    Row,
    Stage,
    StreamSpec,
)
from mcit.methods.base import Method
from mcit.methods.compose import make
from mcit.methods.formulas.divergence import top_kl
from mcit.methods.formulas.general import (
    Built,
    build_hidden,
    build_logits,
    build_states,
    constrained,
    places_of,
    real_rows,
    row_hidden,
)
from mcit.methods.formulas.margin import (
    at_precision,
    batch_margin,
    combined,
    dynamic_weight,
    margin_losses,
    row_margins,
    row_means,
    shares,
)

STREAM = "gere"
_SAME = ("recipe", "variant", "max_length", "bos", "multiplier", "temperature", "top_k")
"""Settings that the states depend on: one pool with one reference for a whole run."""


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
        self._sums: dict[str, Tensor] = {}

    # ---- before a model exists --------------------------------------------------------------------------------------
    @property
    def _off(self) -> bool:
        return self.config.weight == 0

    def recipes(self) -> tuple[str, ...]:
        """The pool."""
        return () if self._off else (self.config.recipe,)

    def run_bytes(self, pools: Mapping[str, PoolSize], *, hidden: int) -> int:
        """Two bit planes per position, or bf16 features, or kept tokens with log-probabilities; image slots count too."""
        if self._off:
            return 0
        size = {"tm": 2 * -(-hidden // 8), "l1": 2 * hidden, "l2": 2 * hidden, "kl": 8 * self.config.top_k, "label": 0}
        pool, logits = pools[self.config.recipe], self.config.variant == "kl"
        return pool.positions(longest=self.config.max_length, supervised=logits) * size[self.config.variant]

    def mixed_rows(self, pools: Mapping[str, int]) -> int:
        """All rows of the pool under natural mixing."""
        return pools.get(self.config.recipe, 0) if self.config.mix == "natural" and not self._off else 0

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """A pool that is also trained on or forgotten, settings that change between stages, an impossible reduction."""
        if self._off:
            return []
        where = f"stages[{stage.index - 1}].methods (gere)"
        return [
            *self._pool_problems(stage, plan, where),
            *self._setting_problems(stage, plan, where),
            *self._reduction_problems(stage, plan, where),
        ]

    def _pool_problems(self, stage: Stage, plan: Plan, where: str) -> list[Problem]:
        problems = []
        for pool in stage.pools:
            if pool.recipe != self.config.recipe:
                continue
            for used in (*plan.tasks, *plan.forget_tasks):
                if used.digest == pool.digest:
                    what = f"the pool {pool.recipe} is also task '{used.name}' of this run"
                    problems.append(Problem(where, what, "give a recipe of general rows that is in no stage"))
            if not pool.rows.get("train", 0):
                problems.append(Problem(where, f"the pool {pool.recipe} has no training rows", "add a train source"))
        return problems

    def _setting_problems(self, stage: Stage, plan: Plan, where: str) -> list[Problem]:
        for other in plan.stages[: stage.index - 1]:
            for spec in other.methods:
                if spec.name != self.name or spec.config.weight == 0:
                    continue
                for key in _SAME:
                    mine, theirs = getattr(self.config, key), getattr(spec.config, key)
                    if mine != theirs:
                        what = f"{key} is {mine}, in stage {other.name} it is {theirs}; a run has one pool and one reference"
                        return [Problem(where, what, f"set {key}: {theirs} in every stage")]
        return []

    def _reduction_problems(self, stage: Stage, plan: Plan, where: str) -> list[Problem]:
        problems = []
        most = self.config.per_step if self.config.mix == "insert" else stage.optim.batch
        if self.config.reduction == "authors" and most > plan.config.engine.micro_batch:
            what = f"reduction: authors needs all {most} general rows of a step in one micro-batch"
            fix = f"set engine.micro_batch: {most} or more, or reduction: rows"
            problems.append(Problem(where, what, fix))
        if self.config.combine != "sum" and any(
            "objective:task" in make(spec).claims.slots for spec in stage.methods if spec.name != self.name
        ):
            what = f"combine: {self.config.combine} takes a share of the task loss, which another method replaces"
            problems.append(Problem(where, what, "set combine: sum"))
        return problems

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over the pool."""
        if self._off:
            return {}
        rows = self._rows(ctx)
        if self.config.mix == "natural":
            return {STREAM: StreamSpec(rows, mixed=True)}
        return {STREAM: StreamSpec(rows, self.config.per_step)}

    def _rows(self, ctx: DataContext) -> list[Row]:
        """The pool, with what the encoder has to know about plain texts."""
        plain = Encoding(raw=True, bos=self.config.bos, max_tokens=self.config.max_length)
        return [replace(row, encoding=plain) if row.encoding.raw else row for row in ctx.pool(self.config.recipe)]

    # ---- the base model's states ------------------------------------------------------------------------------------
    def on_stage_start(self, ctx: StageContext) -> None:
        """Compute the base's states of the pool if this run has none yet.

        Raises StateError if the run has states of another base or pool.
        """
        if not self._off and self.config.variant != "label":
            self._blob(ctx)

    def _fingerprint(self, ctx: StepContext) -> JsonDict:
        kept: JsonDict = {"what": "hidden, bf16"}
        if self.config.variant == "tm":
            kept = {"what": "states", "multiplier": self.config.multiplier}
        if self.config.variant == "kl":
            kept = {"what": "logits", "temperature": self.config.temperature, "top_k": self.config.top_k}
        return {
            "base": ctx.base,
            "pool": {"recipe": self.config.recipe, "digest": ctx.data.pool_digest(self.config.recipe)},
            "text": {"max_length": self.config.max_length, "bos": self.config.bos},
            "layer": "last hidden state after the final norm, text positions",
            "kept": kept,
            "version": 1,
        }

    def _blob(self, ctx: StepContext) -> Blob:
        """The states of this run; computed again when the file is gone."""
        now = self._fingerprint(ctx)
        if self._states is not None and self._states != now:
            key = next(k for k in now if self._states.get(k) != now[k])
            raise StateError(
                f"the run's states of general samples are of {key} {self._states.get(key)}, now it is {now[key]}",
                where=f"stage {ctx.stage.name}, method {self.name}",
                fix="restore that, or start a new run: one run has one pool and one reference",
            )
        self._states = now
        return ctx.blob(STREAM, now, lambda: self._build(ctx))

    def _build(self, ctx: StepContext) -> Built:
        rows = self._rows(ctx.data)
        if self.config.variant == "tm":
            return build_states(ctx, rows, multiplier=self.config.multiplier)
        if self.config.variant == "kl":
            return build_logits(ctx, rows, count=self.config.top_k, temperature=self.config.temperature)
        return build_hidden(ctx, rows)

    # ---- every micro-batch ------------------------------------------------------------------------------------------
    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """On ``gere`` the general loss; on ``task`` what `combine` takes from the task loss."""
        if self._off or batch.stream not in ("task", STREAM):
            return None
        rows = ctx.counts.rows
        of_task, of_general = shares(rows.get("task", 0), rows.get(STREAM, 0), self.config.combine)
        nll = out.nll_N.sum()
        self._add(batch.stream, nll, ctx)
        if batch.stream == "task":
            return None if of_task == 1 else LossSum((of_task - 1) * nll, per="tokens")
        count = ctx.counts.of(STREAM, "rows")
        loss = of_general * nll * (count / ctx.counts.of(STREAM, "tokens"))
        added = self._added(out, batch, ctx, count)
        if added is not None:
            self._add("added", added, ctx)
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
            return self._kl(out, batch, blob) * (count / ctx.counts.of(STREAM, "tokens"))
        mask_BT = constrained(batch)
        lengths = [int(mask_BT[k].sum()) for k in rows]
        hidden_PD = torch.cat([row_hidden(out, mask_BT, k) for k in rows])
        places = [places_of(blob.index, batch.rows[k], n) for k, n in zip(rows, lengths, strict=True)]
        if self.config.variant == "tm":
            return self._margin(hidden_PD, lengths, places, blob, count)
        reference = torch.cat([blob.rows("hidden", start, end) for start, end, _ in places]).to(hidden_PD.device)
        difference = at_precision(hidden_PD, reference.dtype) - reference.float()
        return row_means(difference.abs() if self.config.variant == "l1" else difference.square(), lengths).sum()

    def _margin(
        self, hidden_PD: Tensor, lengths: list[int], places: list[tuple[int, int, int]], blob: Blob, count: int
    ) -> Tensor:
        device = hidden_PD.device
        codes = torch.cat([blob.rows("states", start, end) for start, end, _ in places]).to(device)
        high, low = blob.get("high").to(device), blob.get("low").to(device)
        kinds = [kind for _, _, kind in places]
        if len(set(kinds)) == 1:
            high, low = high[kinds[0]], low[kinds[0]]
        else:
            of_P = torch.tensor(kinds, device=device).repeat_interleave(torch.tensor(lengths, device=device))
            high, low = high[of_P], low[of_P]
        losses = margin_losses(hidden_PD, codes, high, low)
        if self.config.reduction == "rows":
            return row_margins(losses, lengths).sum()
        if len(lengths) != count:
            raise TrainingError(
                f"reduction: authors is a mean over one micro-batch, but {count - len(lengths)} of the step's {count} "
                "general rows are in another one or on another rank",
                where="gere",
                fix="raise engine.micro_batch and use one process, or set reduction: rows",
            )
        return batch_margin(losses) * count

    def _kl(self, out: ModelOutput, batch: Batch, blob: Blob) -> Tensor:
        """Sum over supervised tokens."""
        total = out.logits_NV.new_zeros((), dtype=torch.float32)
        for k in real_rows(batch):
            logits = out.logits_NV[out.row_N == k]
            start, end, _ = places_of(blob.index, batch.rows[k], len(logits))
            ids, log_p = (blob.rows(name, start, end).to(logits.device) for name in ("ids", "log_p"))
            total = total + top_kl(logits, ids, log_p, self.config.temperature).sum()
        return total

    # ---- once per step ----------------------------------------------------------------------------------------------
    def _add(self, name: str, value: Tensor, ctx: StepContext) -> None:
        """Once per batch of a step, however many passes go over it."""
        if ctx.again:
            return
        self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()

    def after_step(self, ctx: StepContext) -> None:
        """Log the step's values over all ranks, and derive the next step's weight from them."""
        if not self._sums:
            return
        zero = torch.zeros_like(next(iter(self._sums.values())))
        sums = ctx.all_sum(torch.stack([self._sums.get(name, zero) for name in ("task", STREAM, "added")]))
        self._sums = {}
        if not ctx.counts.rows.get(STREAM, 0):
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
