"""What forget objectives have in common: the stream of rows to forget, and the weight of the retained rows' loss.

Every objective is ``gamma * L_forget + alpha * L_retain``, where L_retain is the usual loss of the stage's task. Objectives of
one stage read the same rows, so that two of them cost one forward pass. Shapes: B rows, N supervised tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput, Plan, Row, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.forgetting import row_key
from mcit.methods.formulas.objectives import row_sums


class Objective(Method):
    """A loss on stream ``forget``; its Config has `gamma`, `alpha` and `per_step`.

    ``gamma: 0`` reads no rows and, with `alpha` 1, leaves training as it is.
    """

    stream: ClassVar[str] = "forget"
    """The stream it opens."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.reference: dict[str, float] = {}
        """Constants of the stage-start model by row, for those that keep some."""

    @property
    def on(self) -> bool:
        """Whether it forgets at all."""
        return bool(self.config.gamma)

    @property
    def replaces(self) -> bool:
        """Whether the loss of the retained rows is not the usual one."""
        return bool(self.config.alpha != 1)

    @property
    def needs(self) -> frozenset[str]:
        """What the forget loss needs."""
        return frozenset()

    @property
    def claims(self) -> Claims:
        """The rows to forget; the task's loss where it is weighed."""
        slots = frozenset({"objective:task"} if self.replaces else ())
        streams = frozenset({self.stream} if self.on else ())
        return Claims(slots=slots, streams=streams, needs=self.needs if self.on else frozenset())

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """An adapter that can be taken off again has forgotten nothing."""
        return unloadable(stage, self.name) if self.on else []

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows to forget."""
        return {"forget": StreamSpec(list(ctx.forget_rows()), self.config.per_step)} if self.on else {}

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """``gamma * L_forget`` on the rows to forget, ``alpha * L_retain`` on the retained ones."""
        if batch.stream == "task" and self.replaces:
            return self.retain_loss(out, batch, ctx)
        if batch.stream != self.stream or not self.on:
            return None
        term = self.forget_loss(out, batch, ctx)
        return LossSum(self.config.gamma * term.sum, per=term.per)

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """The loss on rows to forget, without its factor."""
        raise NotImplementedError

    def retain_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """The loss on retained rows, with its factor."""
        return LossSum(self.config.alpha * out.nll_N.sum()) if self.config.alpha else None


def unloadable(stage: Stage, name: str) -> list[Problem]:
    """An adapter that the stage does not merge can be taken off, and what was forgotten is back."""
    if stage.adapter.kind == "none" or stage.adapter.carry == "merge":
        return []
    what = f"adapter.carry is {stage.adapter.carry}: an adapter that can be unloaded has forgotten nothing"
    return [Problem(f"stage {stage.name}, method {name}", what, "set adapter.carry: merge in this stage")]


def stored_sums(ctx: StageContext, rows: Sequence[Row]) -> dict[str, float]:
    """Sum of the token losses of each row under the model as it comes in, by row; each rank computes its share once."""
    places = {row_key(row): place for place, row in enumerate(rows)}
    sums = torch.zeros(len(rows), dtype=torch.float64)
    for batch, out in ctx.forward_pass(rows, share=True):
        sum_B, _ = row_sums(out.nll_N, out.row_N, len(batch.rows))
        sums[[places[row_key(row)] for row in batch.rows]] = sum_B.double().cpu()
    return dict(zip(places, ctx.all_sum(sums).tolist(), strict=True))


def of_rows(stored: Mapping[str, float], batch: Batch, like: torch.Tensor) -> torch.Tensor:
    """Stored numbers of a batch's rows, (B,); 0 for one that nothing was stored of, which is supervised of nothing."""
    return torch.tensor([stored.get(row_key(row), 0.0) for row in batch.rows], device=like.device, dtype=like.dtype)


def real(values_B: torch.Tensor, out: ModelOutput) -> torch.Tensor:
    """The values of rows that something is supervised of."""
    return values_B[list(out.real_rows)]
