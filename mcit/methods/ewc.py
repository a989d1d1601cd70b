"""EWC: stay near the weights of earlier stages, most where the earlier answers depend on them.

Paper: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, arXiv:1612.00796, equation 3;
the running form is that of Schwarz et al., "Progress & Compress", ICML 2018, arXiv:1805.06370, section 3.2.
Hooks: on_stage_start (the newest anchor), weight_penalty (every step), on_stage_end (importances of the stage's rows).
State: tensors "fisher" and "anchor" by unit or parameter name, with `merge: separate` "fisher <stage>" and "anchor <stage>".
Shapes: O out features, I in features, R rank.

``weight * sum F (w - w*)^2`` with the empirical diagonal Fisher F: the mean over rows of the squared gradient of a row's
answer log-likelihood (summed over its answer tokens). No factor 1/2 (`half` adds it). Estimators: `rows`, one gradient per row;
`batches`, squares of mini-batch means, as Avalanche has it, which understates F where gradients cancel; `weighted`, squares
times the row's probability, as mammoth has it. Rows are drawn by the stage's seed. The first stage has no penalty.
`space: effective` anchors what a LoRA pair does to its matrix, with an F of the matrix's size, under any `carry`; `parameters`
anchors A and B themselves, which is cheap and only has a meaning while the next stage goes on with the same ones.
`separate` anchors per stage need parameters: merged effective weights would need a dense copy of every stage.
"""

import math
import random
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import Gradients, StageContext, StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput, Plan, Stage, WeightUnit
from mcit.methods.base import Method
from mcit.methods.formulas.anchors import put_anchors, running_terms, separate_terms
from mcit.methods.planning.sizes import matrix_numbers


class EWC(Method):
    """Anchors weighted by a diagonal Fisher."""

    name = "ewc"

    class Config(MethodConfig):
        """Settings of the anchors."""

        weight: float = Field(10.0, ge=0)
        """Factor of the penalty; 10 in mammoth's configuration of online EWC."""
        merge: Literal["online", "separate"] = "online"
        """One running F and the newest anchor, or a penalty for each earlier stage."""
        decay: float = Field(1.0, ge=0, le=1)
        """Share of the old F that stays when a stage's is added (`online`); 1 in mammoth's configuration."""
        estimator: Literal["rows", "batches", "weighted"] = "rows"
        """How gradients are squared; see above."""
        rows: int = Field(500, ge=1)
        """Rows of the stage that F is estimated on."""
        batch: int = Field(8, ge=1)
        """Rows of a mini-batch (`estimator: batches`)."""
        half: bool = False
        """Put 1/2 in front."""
        space: Literal["effective", "parameters"] = "effective"
        """What is anchored of a LoRA pair; see above. The same for tensors that train whole."""

    @property
    def claims(self) -> Claims:
        """Parameters must keep their names and their meaning over stages."""
        return Claims(needs=frozenset({"names:kept"}) if self.config.space == "parameters" else frozenset())

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Effective anchors of several stages would have to be kept dense; a mixture has no effective weights of one pair."""
        if self.config.merge == "separate" and self.config.space == "effective" and stage.adapter.kind == "lora":
            what = "separate anchors of effective weights would need a dense copy of every stage's weights"
            return [Problem("merge", what, "set merge: online, or space: parameters with adapter.carry: keep")]
        if self.config.space == "effective" and stage.adapter.kind == "moe_lora":
            below = plan.stages[: stage.index - 1]
            if any(s.adapter.carry not in ("keep", "none") for s in below):
                what = "a mixture is guarded by parameter names, and an earlier stage does not keep its adapter"
                return [Problem("space", what, "set adapter.carry: keep in every stage before")]
        if self.config.space == "effective" and self.config.weight:
            below = tuple(s for s in plan.stages[: stage.index - 1] if self.name in (m.name for m in s.methods))
            if any((s.adapter.kind == "none") != (stage.adapter.kind == "none") for s in below):
                what = "an earlier stage has adapter pairs where this one trains whole tensors, or the other way round: only "
                what += "what both train whole is guarded"
                return [Problem("adapter.kind", what, "use one kind throughout, if not meant", "note")]
        return []

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """Fp32 anchors and importances of every trained tensor, of a pair's whole matrix if effective."""
        own = sum(4 * math.prod(shape) for shape in shapes.values())
        if self.config.merge == "separate":
            return own + 2 * own * stages
        if self.config.space == "parameters":
            return 2 * own
        return own + 4 * matrix_numbers(shapes)

    # ---- the penalty ------------------------------------------------------------------------------------------------
    def on_stage_start(self, ctx: StageContext) -> None:
        """Anchor every trained tensor where the stage before left it."""
        if self.config.weight == 0:
            return
        self.tensors.drop("anchor")
        put_anchors(self.tensors, "anchor", ctx.weights)

    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> Tensor | None:
        """``weight * sum F (w - w*)^2`` of one unit; None where no F is known."""
        if self.config.weight == 0:
            return None
        if self.config.merge == "separate":
            terms = separate_terms(self.tensors, unit, tensors)
        else:
            terms = running_terms(self.tensors, unit, tensors, effective=self._is_effective(unit))
        factor = self.config.weight * (0.5 if self.config.half else 1.0)
        return factor * torch.stack(terms).sum() if terms else None

    def _is_effective(self, unit: WeightUnit) -> bool:
        return self.config.space == "effective" and unit.kind == "lora" and set(unit.params) == {"A", "B"}

    # ---- importances ------------------------------------------------------------------------------------------------
    def on_stage_end(self, ctx: StageContext) -> None:
        """Square gradients of rows drawn from the stage; add them to F, or put them beside the stage's anchor."""
        if self.config.weight == 0:
            return
        rows = list(ctx.data.stage_rows())
        drawn = random.Random(f"{ctx.seed}/ewc").sample(rows, min(self.config.rows, len(rows)))
        self.tensors.drop("new")
        size, probability, count = self.config.batch if self.config.estimator == "batches" else 1, 1.0, 0

        def likelihood(out: ModelOutput, batch: Batch) -> LossSum:
            nonlocal probability
            if self.config.estimator == "weighted":
                probability = math.exp(-float(out.nll_N.sum()))
            return LossSum(out.nll_N.sum(), per="rows")

        for _, gradients in ctx.gradient_pass(
            drawn, rows=size, loss=likelihood, effective=self.config.space == "effective"
        ):
            self._square(ctx, gradients, probability)
            count += 1
        self._add(ctx, count)

    def _square(self, ctx: StageContext, gradients: Gradients, factor: float) -> None:
        for unit in ctx.weights.units():
            if self._is_effective(unit):
                self.tensors.accumulate("new", unit.name, gradients.effective(unit).square(), factor)
            else:
                for role, gradient in gradients.full(unit).items():
                    self.tensors.accumulate("new", unit.params[role], gradient.square(), factor)

    def _add(self, ctx: StageContext, count: int) -> None:
        """Put the mean of the squares where the penalty looks for it."""
        separate = self.config.merge == "separate"
        kind = f"fisher {ctx.stage.name}" if separate else "fisher"
        for name in self.tensors.names("new"):
            old = None if separate else self.tensors.get(kind, name)
            mean = self.tensors.require("new", name) / max(1, count)
            self.tensors.put(kind, name, mean if old is None else self.config.decay * old + mean)
        self.tensors.drop("new")
        if separate:
            self.tensors.put("stages", ctx.stage.name, torch.zeros(()))
            put_anchors(self.tensors, f"anchor {ctx.stage.name}", ctx.weights)
