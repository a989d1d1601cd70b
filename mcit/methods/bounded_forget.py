"""Bounded forgetting: push the loss of rows that are to be forgotten up to a bound, and no further.

Paper: Zhao et al., "Continual Forgetting for Pre-trained Vision Models" (GS-LoRA), CVPR 2024, arXiv:2403.11530, the
selective forgetting loss ``max(0, bound - loss)``. With `group_sparse` it is GS-LoRA: preset ``gs_lora``.
Hooks: streams (rows to forget), on_stage_start (what all answers share, bounds of rows), loss_term (stream ``forget``).
State: "spare", tokens at both ends of answers that are not pushed; "bounds" by row.
Shapes: B rows, N supervised tokens, V vocabulary.

The retained rows are the stage's own task and have its usual loss. A step takes its rows of both; an epoch is one pass over
the retained rows. An adapter must be merged after the stage (``carry: merge``), else unloading it would bring everything
back.

Ours, for a language model: the bound per token (or per row) instead of per batch, so that a step does not depend on how it
is cut (``reduction: authors`` is their form, on one rank and in one micro-batch); tokens that all answers of the stage begin
or end with are not pushed; ``bound: ignorance``, the loss of the stage-start model without the picture, plus a margin. Not
taken over: choosing the checkpoint by test scores, swapping roles where there are more batches to forget than to retain
(``per_step`` says how many), EMA weights that are never saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem, TrainingError
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, Plan, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.forgetting import (
    batch_bound,
    one_answer_each,
    pushed_in_step,
    pushed_tokens,
    row_bound,
    row_key,
    row_means,
    seen_pictures,
    spared_ends,
    token_bound,
    without_pictures,
)
from mcit.methods.objective import unloadable


class BoundedForget(Method):
    """A loss on stream ``forget`` that ends at a bound."""

    name = "bounded_forget"
    claims = Claims(streams=frozenset({"forget"}))

    class Config(MethodConfig):
        """Settings of the forget loss."""

        beta: float = Field(1.0, ge=0)
        """Factor of the loss."""
        bound: Literal["uniform", "ignorance"] | float = "uniform"
        """Loss up to which a token is pushed: ``uniform`` is ln V, ``ignorance`` the row's loss without its picture."""
        margin: float = Field(1.0, ge=0)
        """Added to the loss without picture, in nats; the sum never exceeds ln V."""
        reduction: Literal["tokens", "rows", "authors"] = "tokens"
        """The bound is on each token, on each row's mean, or on the mean of the whole batch."""
        spare: Literal["shared", "none"] = "shared"
        """Leave out what all answers of the stage begin or end with, such as the end marker."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step, on top of the retained ones; they are gone over again and again."""

    def __init__(self, config: BoundedForget.Config) -> None:
        super().__init__(config)
        self._spare = [0, 0]
        self._bounds: dict[str, float] = {}

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Settings that cannot act, or that act otherwise than meant."""
        where, c, out = f"stage {stage.name}, method {self.name}", self.config, unloadable(stage, self.name)
        size = plan.config.engine.micro_batch
        if c.reduction == "authors" and c.bound == "ignorance":
            what = "reduction: authors has one bound for the whole batch, ignorance has one per row"
            out.append(Problem(where, what, "give the bound as a number or as uniform"))
        if c.reduction == "authors" and c.per_step > size:
            what = f"reduction: authors needs the {c.per_step} rows to forget in one micro-batch, which holds {size}"
            out.append(Problem(where, what, f"set engine.micro_batch: {c.per_step}, or per_step: {size}"))
        if c.reduction == "authors" and c.spare == "shared":
            what = "reduction: authors bounds the mean over all tokens, so none is spared"
            out.append(Problem(where, what, "set spare: none to say so, or reduction: tokens", "note"))
        return out

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """Rows to forget. Raises DataError for rows that do not fit."""
        rows = list(ctx.forget_rows())
        if self.config.bound == "ignorance":
            seen_pictures(rows, "which bound: ignorance does", fix="use bound: uniform")
        if self.config.spare == "shared":
            one_answer_each(rows)
        return {"forget": StreamSpec(rows, self.config.per_step)}

    def on_stage_start(self, ctx: StageContext) -> None:
        """What answers share, then the loss of each row without its picture: all of the model as it comes in."""
        self._spare = list(spared_ends(ctx)) if self.config.spare == "shared" else [0, 0]
        self._bounds = {}
        if self.config.bound == "ignorance":
            for batch, out in ctx.forward_pass("forget", change=without_pictures):
                means_B, _ = row_means(out.nll_N, out.row_N, self._pushed(out), rows=len(batch.rows))
                most = math.log(out.logits_NV.shape[-1])
                for row, mean in zip(batch.rows, means_B.tolist(), strict=True):
                    self._bounds[row_key(row)] = min(mean + self.config.margin, most)

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """The loss as a sum over rows; what is a mean over tokens is scaled by rows per token."""
        if batch.stream != "forget" or not self.config.beta:
            return None
        rows = ctx.counts.of("forget", "rows")
        if self.config.reduction == "authors" and rows != len(batch.rows):
            what = (
                f"reduction: authors is a loss of the whole batch, but this one holds {len(batch.rows)} of {rows} rows"
            )
            raise TrainingError(what, where=self.name, fix="use one rank and one micro-batch, or reduction: tokens")
        return LossSum(self.config.beta * self._bounded(out, batch, ctx, rows), per="rows")

    def _bounded(self, out: ModelOutput, batch: Batch, ctx: StepContext, rows: int) -> Tensor:
        """The forget loss, times the rows of the step."""
        c, uniform = self.config, math.log(out.logits_NV.shape[-1])
        if c.reduction == "authors":
            return rows * batch_bound(out.nll_N, uniform if c.bound == "uniform" else float(c.bound))
        level = uniform if c.bound == "uniform" else c.bound
        bounds = [self._bounds[row_key(row)] if level == "ignorance" else float(level) for row in batch.rows]
        bound_B = torch.tensor(bounds, device=out.nll_N.device)
        if c.reduction == "rows":
            return row_bound(out.nll_N, out.row_N, bound_B, self._pushed(out))
        tokens = pushed_in_step(ctx.counts, self._spare)
        return rows / tokens * token_bound(out.nll_N, bound_B[out.row_N], self._pushed(out))

    def _pushed(self, out: ModelOutput) -> Tensor:
        head, tail = self._spare
        return pushed_tokens(out.row_N, head=head, tail=tail)

    def state_dict(self) -> JsonDict:
        """Spared tokens and bounds."""
        return {"spare": self._spare, "bounds": self._bounds}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self._spare, self._bounds = list(state["spare"]), dict(state["bounds"])
