"""MOS: every stage trains an adapter of its own, which is drawn towards the mean of the earlier ones after each step.

Paper: Sun et al., "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning", AAAI 2025, arXiv:2412.09441,
the section on progressive adapter merging: ``A_b <- (1 - a) A_b + a mean_{k<b} A_k`` after each optimiser step, a = 0.1, and
A_b begins where A_{b-1} ended.
Hooks: on_stage_start (begins with the last adapter), after_step (one merge of every tensor), on_stage_end (adds the adapter
to the sum).
State: tensors "sum" (of the adapters of earlier stages) and "last" by parameter name; "stages", how many there are by name.

With ``carry: pool`` the adapters stay apart and a router chooses one per row: `self_refined` is the paper's. Factors A and B
are averaged one by one, as the two matrices of the paper's adapters are. Differs: no orthogonality loss between the rows of
a batch and stored class means, for it would depend on how a step is cut into micro-batches and ranks. For other methods
``reference:stage_start`` is the base without this adapter. Neutral: ``momentum: 0`` with ``warm_start: false``.
The released code merges in place and in every block of every forward pass, of evaluation too: with L blocks
``(1 - a)^(L + 1)`` of what a step trained is left. ``authors_compat: true`` does as many merges: L before the passes of each
step, one after it, and at the end L for each batch of the pass that collects class statistics, so that the adapter ends as
the mean of its predecessors. In the released code block l acts after l + 1 of the L merges, here after all of them. Merges at
evaluation, which change such an adapter no more, are left out: evaluating twice gives the same answers.
"""

import math
from collections.abc import Mapping

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Claims, JsonDict, Plan, Stage
from mcit.methods.base import Method
from mcit.methods.formulas.averaging import towards_mean


class MOS(Method):
    """Merge the adapter in training towards the mean of those before it."""

    name = "mos"
    claims = Claims(slots=frozenset({"weights:edit"}), needs=frozenset({"adapter:lora", "carry:pool"}))

    class Config(MethodConfig):
        """Settings of the merge."""

        momentum: float = Field(0.1, ge=0, lt=1)
        """Share of the mean of earlier adapters in a merge; 0.1 in the paper."""
        warm_start: bool = True
        """Begin a stage with the adapter of the one before."""
        authors_compat: bool = False
        """Merge as often as the released code does."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._stages: dict[str, int] = {}

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Adapters that have no mean, and routers that go on training one of them."""
        where = f"stages[{stage.index - 1}].methods (mos)"
        problems = []
        if plan.router is not None and plan.router.joins:
            what = f"the router {plan.router.name} continues adapters of earlier stages, but mos needs one per stage"
            problems.append(Problem(where, what, "use router: {use: self_refined}, or oracle"))
        first = next(s for s in plan.stages if any(spec.name == self.name for spec in s.methods))
        for key in ("rank", "alpha", "rslora", "targets"):
            mine, other = getattr(stage.adapter, key), getattr(first.adapter, key)
            if mine != other:
                what = f"adapter.{key} is {mine}, in stage {first.folder} {other}: their mean is no adapter"
                problems.append(Problem(where, what, f"use one {key} in every stage with mos"))
        return problems

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """Fp32 copies of every trained tensor: the sum of earlier adapters, and the last one to begin with."""
        return (8 if self.config.warm_start else 4) * sum(math.prod(shape) for shape in shapes.values())

    def on_stage_start(self, ctx: StageContext) -> None:
        """Begin with the last adapter."""
        if self.config.warm_start:
            for unit in ctx.weights.units():
                with ctx.weights.edit(unit) as tensors:
                    for role, tensor in tensors.items():
                        before = self.tensors.get("last", unit.params[role])
                        if before is not None:
                            tensor.copy_(before)
        if self.config.authors_compat:
            self._merge(ctx, _blocks(ctx))

    def after_step(self, ctx: StepContext) -> None:
        """One merge; as in the released code, with those of the next step's passes."""
        last = ctx.step + 1 == ctx.total_steps
        self._merge(ctx, 1 + (_blocks(ctx) if self.config.authors_compat and not last else 0))

    def _merge(self, ctx: StepContext, times: int) -> None:
        """So many merges of every tensor that earlier stages trained, too."""
        for unit in ctx.weights.units() if self.config.momentum and self._stages else ():
            with ctx.weights.edit(unit) as tensors:
                for role, tensor in tensors.items():
                    total = self.tensors.get("sum", unit.params[role])
                    if total is not None:
                        count, share = self._stages[unit.params[role]], self.config.momentum
                        tensor.copy_(towards_mean(tensor, total.to(tensor.device), count, share, times))

    def on_stage_end(self, ctx: StageContext) -> None:
        """Add what is committed to the sum."""
        if self.config.authors_compat:
            self._merge(ctx, _blocks(ctx) * -(-len(ctx.data.stage_rows()) // ctx.stage.optim.batch))
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    name = unit.params[role]
                    self.tensors.accumulate("sum", name, tensor)
                    self._stages[name] = self._stages.get(name, 0) + 1
                    if self.config.warm_start:
                        self.tensors.put("last", name, tensor)

    def state_dict(self) -> JsonDict:
        """How many stages trained each tensor."""
        return {"stages": self._stages}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self._stages = {str(name): int(count) for name, count in state["stages"].items()}


def _blocks(ctx: StepContext) -> int:
    """Transformer blocks with an adapter: merges of a forward pass in the released code."""
    return len({unit.block for unit in ctx.weights.units()})
