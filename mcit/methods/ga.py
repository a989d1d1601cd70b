"""Gradient ascent on rows to forget, alone or beside the retained rows' loss, with a safety stop.

Paper: Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models", ACL 2023, arXiv:2210.01504
(ascent on the token loss); with the retained loss it is the gradient difference of Liu et al., "Continual Learning and
Private Unlearning", CoLLAs 2022, arXiv:2203.12817: preset ``grad_diff``, ``-gamma M_forget + alpha R``.
Hooks: streams (rows to forget), on_stage_start (retained loss to compare with), loss_term (streams ``forget`` and
``task``), after_step (the stop).
State: "start", the retained loss at the start; "recent", [loss sum, tokens] of the last steps' retained rows.
Shapes: N supervised tokens.

M is the mean over the answer tokens of the step. Ascent has no bound and diverges, so the stage ends early, with its
reason on record, when M exceeds `ceiling` (ln V: a model that knows nothing is at it), or when the retained loss over
the last `WINDOW` steps is more than `retain_rise` above that of the stage-start model. The stop is ours. With ``alpha:
0`` retained rows still pass through the model, because the stop looks at them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Batch, JsonDict, LossSum, ModelOutput
from mcit.methods.formulas.forgetting import LOOKED_AT, drawn
from mcit.methods.formulas.importances import loss_on
from mcit.methods.objective import Objective

WINDOW = 8
"""Steps over which the retained loss is averaged before it is compared."""
SLACK = 0.05
"""Nats that the retained loss may rise in any case: 20 % of almost nothing is noise."""


class GA(Objective):
    """Minus the token loss of rows to forget."""

    name = "ga"

    class Config(MethodConfig):
        """Settings of the ascent."""

        gamma: float = Field(1.0, ge=0)
        """Factor of the ascent."""
        alpha: float = Field(0.0, ge=0)
        """Factor of the retained rows' loss: 0 is ascent alone, 1 the gradient difference."""
        ceiling: Literal["uniform", "none"] | float = "uniform"
        """Forget loss per token that ends the stage; ``uniform`` is ln V."""
        retain_rise: float | None = Field(0.2, gt=0)
        """Share by which the retained loss may rise (and 0.05 nats in any case) before the stage ends; None never ends it."""
        per_step: int = Field(8, ge=1)
        """Rows to forget per optimiser step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._start: float | None = None
        self._recent: list[list[float]] = []
        self._sums: dict[str, Tensor] = {}
        self._uniform = math.inf

    @property
    def _watches(self) -> bool:
        return self.on and (self.config.ceiling != "none" or self.config.retain_rise is not None)

    def on_stage_start(self, ctx: StageContext) -> None:
        """The retained loss of the model as it comes in, on rows drawn by the stage's seed."""
        self._start, self._recent = None, []
        rows = drawn(ctx.data.stage_rows(), LOOKED_AT, ctx.seed)
        if self.on and self.config.retain_rise is not None and rows:
            self._start = loss_on(ctx, rows)

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """The objective; what the stop looks at is added up once per row."""
        if self._watches and batch.stream in ("task", "forget") and not ctx.again:
            self._sums[batch.stream] = self._sums.get(batch.stream, 0.0) + out.nll_N.detach().double().sum()
            self._uniform = math.log(out.logits_NV.shape[-1])
        return super().loss_term(out, batch, ctx)

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """``-M``."""
        return LossSum(-out.nll_N.sum())

    def after_step(self, ctx: StepContext) -> None:
        """End the stage where the ascent has gone far enough, or too far."""
        if not self._watches:
            return
        zero = torch.zeros((), dtype=torch.float64)
        forget, retain = ctx.all_sum(torch.stack([self._sums.get(s, zero).cpu() for s in ("forget", "task")])).tolist()
        self._sums = {}
        self._recent = [*self._recent, [retain, float(ctx.counts.tokens.get("task", 0))]][-WINDOW:]
        ceiling = self._uniform if self.config.ceiling == "uniform" else self.config.ceiling
        mean = forget / ctx.counts.of("forget", "tokens")
        if ceiling != "none" and mean > float(ceiling):
            ctx.end_stage(f"{self.name}: the forget loss {mean:.3f} is above {float(ceiling):.3f}")
        now = sum(s for s, _ in self._recent) / max(1.0, sum(n for _, n in self._recent))
        if self._start is not None and len(self._recent) == WINDOW:
            most = self._start + max(SLACK, self.config.retain_rise * self._start)
            if now > most:
                ctx.end_stage(f"{self.name}: the retained loss {now:.3f} is above {most:.3f}, from {self._start:.3f}")

    def state_dict(self) -> JsonDict:
        """What the stop compares."""
        return {"start": self._start, "recent": self._recent}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self._start, self._recent = state["start"], [list(pair) for pair in state["recent"]]
