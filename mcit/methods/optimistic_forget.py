"""Optimistic forgetting of a request: stop when it is forgotten, look again after later stages, and go on where it came back.

A hypothesis of ours, and no reproduction. The name and the thought come from "optimistic forgetting" in safe reinforcement
learning, arXiv:2501.04481, of whose algorithm we know the abstract alone; nothing here is a claim about that paper. The loss on
what is forgotten anew is the bound of GS-LoRA (Zhao et al., arXiv:2403.11530).
Hooks: streams (``requeued``: rows of earlier requests that came back), on_stage_start (a new request), loss_term (streams
``forget``, which it reads, and ``requeued``), after_step (the stop), on_stage_end (the audit).
State: "targets", per request its stage, spared tokens, whether it is queued and the loss of its last audit; "met", steps in a
row at the bound.
Shapes: N supervised tokens.

Beside a forget objective, in every stage of a sequence. A stage that forgets ends early once the mean loss of the answer tokens
of stream ``forget`` was at `bound` for `patience` steps in a row (tokens that all answers share are left out, as in
`bounded_forget`); objectives that do not read that stream are not stopped. At its end, and at the end of every later stage,
up to `rows` rows of each request are looked at: one with a mean loss below ``requeue * bound`` is queued, and the next
stage, whatever it learns, pushes its rows to the bound beside its task. ``audit: false`` is the ablation: nothing is looked at
or queued again. A request whose data were deleted cannot be audited; it is counted (``optimistic_forget/gone``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, Plan, Row, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.forgetting import deleted, drawn, pushed_in_step, pushed_tokens, spared_ends, token_bound
from mcit.methods.objective import unloadable


class OptimisticForget(Method):
    """Decides when a request is worked on."""

    name = "optimistic_forget"
    claims = Claims(streams=frozenset({"requeued"}))

    class Config(MethodConfig):
        """Where a request counts as forgotten, and what is done about one that came back."""

        stop: bool = True
        """End a stage that forgets once its rows are at the bound."""
        bound: Literal["uniform"] | float = "uniform"
        """Mean loss per token at which a request counts as forgotten; ``uniform`` is ln V."""
        patience: int = Field(3, ge=1)
        """Steps in a row at the bound after which the stage ends."""
        audit: bool = True
        """Look at every request again after its stage and after each later one."""
        requeue: float = Field(0.5, ge=0)
        """Share of the bound below which a request is queued for the next stage."""
        rows: int = Field(64, ge=1)
        """Most rows of a request that are looked at, drawn by the stage's seed."""
        gamma: float = Field(1.0, ge=0)
        """Factor of the loss on queued rows; 0 looks and does nothing."""
        per_step: int = Field(4, ge=1)
        """Queued rows per optimiser step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._targets: list[dict[str, Any]] = []
        self._met = 0
        self._sum: Tensor | None = None
        self._uniform = math.inf

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """What is forgotten anew must not lie in an adapter that can be taken off."""
        later = any(earlier.forget for earlier in plan.stages[: stage.index - 1])
        return unloadable(stage, self.name) if later and self.config.audit and self.config.gamma else []

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """Rows of the requests that are queued; none where there are none."""
        rows = [row for target in self._queued(ctx.stage) for row in self._rows(target, ctx)]
        return {"requeued": StreamSpec(rows, self.config.per_step)} if rows and self.config.gamma else {}

    def _queued(self, stage: Stage) -> list[dict[str, Any]]:
        """Requests of earlier stages that are queued."""
        return [target for target in self._targets if target["queued"] and target["stage"] < stage.index]

    def _rows(self, target: Mapping[str, Any], data: DataContext) -> list[Row]:
        """Rows of a request; none once its data were deleted."""
        (stage,) = (s for s in data.stages if s.index == target["stage"])
        return [] if deleted(stage) else list(data.forget_rows(stage))

    def _bound(self) -> float:
        return self._uniform if self.config.bound == "uniform" else float(self.config.bound)

    def on_stage_start(self, ctx: StageContext) -> None:
        """Note the request of this stage, with what its answers share."""
        self._met = 0
        if ctx.stage.forget and (self.config.stop or self.config.audit):
            spare = list(spared_ends(ctx, list(ctx.data.forget_rows())))
            self._targets.append({"stage": ctx.stage.index, "spare": spare, "queued": False, "loss": None})

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """``gamma * mean max(0, bound - loss)`` of queued rows; of the rows to forget the loss is added up."""
        self._uniform = math.log(out.logits_NV.shape[-1])
        if batch.stream == "forget" and self.config.stop and not ctx.again:
            head, tail = self._targets[-1]["spare"]
            mine = (out.nll_N.detach().double() * pushed_tokens(out.row_N, head=head, tail=tail)).sum()
            self._sum = mine if self._sum is None else self._sum + mine
        if batch.stream != "requeued":
            return None
        ends = [target["spare"] for target in self._queued(ctx.stage)]
        head, tail = (min(pair[k] for pair in ends) for k in (0, 1))
        pushed = token_bound(out.nll_N, self._bound(), pushed_tokens(out.row_N, head=head, tail=tail))
        tokens = ctx.counts.of("requeued", "tokens") / pushed_in_step(ctx.counts, (head, tail), "requeued")
        return LossSum(self.config.gamma * tokens * pushed, per="tokens")

    def after_step(self, ctx: StepContext) -> None:
        """End the stage where the rows to forget were at the bound for long enough."""
        if self._sum is None:
            return
        mean = float(ctx.all_sum(self._sum)) / pushed_in_step(ctx.counts, self._targets[-1]["spare"])
        self._sum, self._met = None, self._met + 1 if mean >= self._bound() else 0
        ctx.log(f"{self.name}/loss", mean)
        if self._met >= self.config.patience:
            ctx.end_stage(f"{self.name}: the forget loss {mean:.3f} is at {self._bound():.3f} for {self._met} steps")

    def on_stage_end(self, ctx: StageContext) -> None:
        """Look at every request so far and queue what is not, or no longer, forgotten."""
        gone = 0
        for target in self._targets if self.config.audit else ():
            rows = drawn(self._rows(target, ctx.data), self.config.rows, ctx.seed)
            gone += not rows
            target["loss"] = self._loss(ctx, rows, target["spare"]) if rows else None
            target["queued"] = bool(rows) and target["loss"] < self.config.requeue * self._bound()
            if rows:
                ctx.log(f"{self.name}/stage-{target['stage']}", target["loss"])
        if self.config.audit and self._targets:
            ctx.log(f"{self.name}/queued", float(sum(target["queued"] for target in self._targets)))
            ctx.log(f"{self.name}/gone", float(gone))

    def _loss(self, ctx: StageContext, rows: list[Row], spare: list[int]) -> float:
        """Mean loss of the tokens that the answers do not share."""
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for _, out in ctx.forward_pass(rows):
            self._uniform = math.log(out.logits_NV.shape[-1])
            pushed_N = pushed_tokens(out.row_N, head=spare[0], tail=spare[1])
            total += (out.nll_N.detach().double() * pushed_N).sum().cpu()
            tokens += int(pushed_N.sum())
        return float(total) / max(1, tokens)

    def state_dict(self) -> JsonDict:
        """Requests so far, and steps at the bound."""
        return {"targets": self._targets, "met": self._met}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self._targets, self._met = [dict(target) for target in state["targets"]], int(state["met"])
