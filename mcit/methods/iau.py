"""IAU: forget by learning the opposite, in one step and without a Hessian.

Paper: Liu et al., "Efficient Machine Unlearning via Influence Approximation", 2025, arXiv:2507.23257: a row's removal
moves the optimum as an added row of opposite gradient does, and the retained rows' gradient corrects the step: ``theta
<- theta - lr (grad M_retain - grad M_forget)``, M mean losses.
Hooks: streams (rows to forget, for passes alone), on_stage_start (the step).
State: "norm" of the direction in the last stage that forgot; gradients only while they are added up.

``formula`` is that step. ``sign``, what the released code comes to (the first step of a fresh Adam), moves every weight
by `lr` against the sign of its direction, whatever its size. For a stage with ``epochs: 0``, or as a start for an
objective of the same stage. On a fresh LoRA adapter only B has a gradient. The paper's third part, restricted gradients
while learning, is the preset ``gradient_restriction``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem, TrainingError
from mcit.core.interfaces import DataContext, StageContext
from mcit.core.types import Claims, JsonDict, Plan, Row, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.forgetting import drawn
from mcit.methods.objective import unloadable


class IAU(Method):
    """One step against retained minus forgotten gradients."""

    name = "iau"
    claims = Claims(slots=frozenset({"weights:edit"}), streams=frozenset({"forget"}))

    class Config(MethodConfig):
        """Settings of the step."""

        lr: float = Field(1e-3, ge=0)
        """Length of the step; 0 changes nothing. 1e-3 in the released code, with ``sign``."""
        step: Literal["formula", "sign"] = "sign"
        """Along the direction itself, or its sign."""
        rows: int = Field(256, ge=1)
        """Most retained rows that are read, drawn by the stage's seed; all rows to forget are."""
        batch: int = Field(8, ge=1)
        """Rows per gradient; the means do not depend on it."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._norm: float | None = None

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """An adapter that can be taken off again has forgotten nothing."""
        return unloadable(stage, self.name)

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows to forget, which only passes read."""
        return {"forget": StreamSpec(list(ctx.forget_rows()))}

    def on_stage_start(self, ctx: StageContext) -> None:
        """Take the step. Raises TrainingError where retained and forgotten rows pull alike and nothing moves."""
        self._norm = None
        if not self.config.lr:
            return
        self._add(ctx, list(ctx.data.forget_rows()), -1.0)
        self._add(ctx, drawn(ctx.data.stage_rows(), self.config.rows, ctx.seed), 1.0)
        square = 0.0
        for unit in ctx.weights.units():
            with ctx.weights.edit(unit) as tensors:
                for role, weight in tensors.items():
                    direction = self.tensors.require("direction", unit.params[role]).to(weight.device)
                    square += float(direction.square().sum())
                    weight -= self.config.lr * (direction.sign() if self.config.step == "sign" else direction)
        self.tensors.drop("direction")
        self._norm = math.sqrt(square)
        ctx.log("iau/norm", self._norm)
        if not self._norm:
            what = "retained and forgotten rows have the same gradient, so nothing is forgotten"
            raise TrainingError(what, where=self.name, fix="check that the two sets differ")

    def _add(self, ctx: StageContext, rows: Sequence[Row], factor: float) -> None:
        """Add the gradient of the mean loss per answer token of all rows, times a factor."""
        tokens = 0
        for batch, gradients in ctx.gradient_pass(rows, rows=self.config.batch):
            for unit in gradients.units():
                for role, gradient in gradients.full(unit).items():
                    self.tensors.accumulate("sum", unit.params[role], gradient, float(batch.target_count))
            tokens += batch.target_count
        for name in self.tensors.names("sum"):
            self.tensors.accumulate("direction", name, self.tensors.require("sum", name), factor / max(1, tokens))
        self.tensors.drop("sum")

    def state_dict(self) -> JsonDict:
        """Size of the direction."""
        return {"norm": self._norm}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self._norm = state["norm"]
