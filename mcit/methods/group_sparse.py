"""Group sparsity: a norm per group of low-rank matrices that is driven to zero, so that few blocks change at all.

Paper: Zhao et al., "Continual Forgetting for Pre-trained Vision Models" (GS-LoRA), CVPR 2024, arXiv:2403.11530, its group
sparse regularisation. With `bounded_forget` it is GS-LoRA: preset ``gs_lora``.
Hooks: on_stage_start (no group is 0 yet), weight_penalty (subgradient treatment), after_step (proximal treatment, pruning),
on_stage_end (size of every group).
State: "zero", the groups that are exactly 0; "norms" of each group, [of A and B, of the change of the weights].
Shapes: of A (R, I) and B (O, R), any.

A group is all LoRA matrices of one decoder block; ``adapter.targets`` says which (the authors: the two linears of the MLP).
The penalty is ``alpha * sum_g |theta_g|``, a sum over groups, not a mean.

Two treatments. ``subgradient``, the authors': the penalty's gradient is added to the loss's and goes through Adam, which
rescales it; nothing gets exactly 0. ``proximal``, ours: after the optimizer's step each group is multiplied by ``max(0, 1 -
lr * alpha / |theta_g|)``. Groups reach exactly 0, lose their moments and stay 0; alpha then is in units of the loss per unit
of norm and must be one to three orders of magnitude larger: about the initial norm of a group over the sum of the learning
rates after the warm-up. Both act from `alpha_epoch` on, for at the start every change is 0 while the norm is not. Not taken
over: recomputing norms over the first six blocks only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import StageContext, StepContext
from mcit.core.types import Claims, JsonDict, Plan, Stage, WeightUnit
from mcit.methods.base import Method
from mcit.methods.formulas.groups import (
    group_norm,
    group_sizes,
    negligible,
    shrink_factor,
    size_weight,
    stepped_alpha,
)
from mcit.methods.planning.group_sparse import group_sparse_problems


class GroupSparse(Method):
    """A norm per group of LoRA matrices, as a penalty or as a proximal step."""

    name = "group_sparse"
    claims = Claims(slots=frozenset({"weights:prox"}), needs=frozenset({"adapter:lora"}))

    class Config(MethodConfig):
        """Settings of the penalty."""

        alpha: float = Field(1e-4, ge=0)
        """Factor of the penalty."""
        alpha_epoch: float = Field(0.0, ge=0)
        """Passes over the retained rows before the penalty acts."""
        treatment: Literal["subgradient", "proximal"] = "subgradient"
        """How the penalty acts, see above."""
        groups: Literal["block", "pair", "matrix"] = "block"
        """What has one norm: the pairs of a decoder block, A and B of one linear, or every matrix."""
        size_weights: bool = False
        """Weigh each block by the root of its share of the parameters."""
        prune: float | None = Field(None, gt=0, lt=1)
        """Set groups to 0 at the end whose change of the weights is below this share of the largest."""

    def __init__(self, config: GroupSparse.Config) -> None:
        super().__init__(config)
        self._kind = "block" if config.groups == "block" else "lora"
        self.penalty_kinds = frozenset({self._kind} if config.treatment == "subgradient" and config.alpha else ())
        self._zero: list[str] = []
        self._norms: dict[str, list[float]] = {}

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """See `group_sparse_problems`."""
        late = bool(stage.steps and self.config.alpha and not self._alpha(stage, stage.steps - 1))
        return group_sparse_problems(self.config, stage, never_acts=late, name=self.name)

    def on_stage_start(self, ctx: StageContext) -> None:
        """A fresh adapter has no zero groups."""
        self._zero, self._norms = [], {}

    def _alpha(self, stage: Stage, step: int) -> float:
        c = self.config
        return stepped_alpha(c.alpha, step=step, batch=stage.optim.batch, rows=stage.rows, from_epoch=c.alpha_epoch)

    def _weight(self, unit: WeightUnit, ctx: StepContext) -> float:
        if not self.config.size_weights:
            return 1.0
        return size_weight(unit.shape[0], (other.shape[0] for other in ctx.weights.units("block")))

    def weight_penalty(self, unit: WeightUnit, tensors: Mapping[str, Tensor], ctx: StepContext) -> Tensor | None:
        """``alpha * |theta_g|`` of a group; None before `alpha_epoch`."""
        alpha = self._alpha(ctx.stage, ctx.step) * self._weight(unit, ctx)
        if alpha == 0:
            return None
        groups = [[t] for t in tensors.values()] if self.config.groups == "matrix" else [list(tensors.values())]
        return alpha * torch.stack([group_norm(group) for group in groups]).sum()

    def after_step(self, ctx: StepContext) -> None:
        """The proximal step; after the last step of the stage, pruning."""
        alpha = self._alpha(ctx.stage, ctx.step)
        if self.config.treatment == "proximal" and alpha:
            total = 0.0
            for unit in ctx.weights.units(self._kind):
                weighted = alpha * self._weight(unit, ctx)
                total += weighted * self._shrink(unit, ctx.lr * weighted, ctx)
            ctx.log(f"penalty/{self.name}", total)
            ctx.log(f"{self.name}/zero_groups", float(len(self._zero)))
        if self.config.prune is not None and ctx.step == ctx.total_steps - 1:
            changes = {
                name: change for name, (_, change) in group_sizes(ctx.weights, by_block=self._kind == "block").items()
            }
            drop = set(negligible(changes, self.config.prune))
            for unit in ctx.weights.units(self._kind):
                if unit.name in drop:
                    self._shrink(unit, math.inf, ctx)

    def _shrink(self, unit: WeightUnit, threshold: float, ctx: StepContext) -> float:
        """One proximal step of one group; returns its norm before. What is 0 stays 0."""
        with ctx.weights.edit(unit) as tensors:
            norm = float(group_norm(tensors.values()))
            factor = 0.0 if unit.name in self._zero else shrink_factor(norm, threshold)
            for tensor in tensors.values():
                tensor.zero_() if factor == 0 else tensor.mul_(factor)
        if factor == 0 and unit.name not in self._zero:
            ctx.weights.forget_moments(unit)
            self._zero = sorted([*self._zero, unit.name])
        return norm

    def on_stage_end(self, ctx: StageContext) -> None:
        """Record how large each group is."""
        self._norms = group_sizes(ctx.weights, by_block=self._kind == "block")
        self._zero = sorted(name for name, (norm, _) in self._norms.items() if norm == 0)

    def state_dict(self) -> JsonDict:
        """Zero groups and sizes."""
        return {"zero": self._zero, "norms": self._norms}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self._zero, self._norms = list(state["zero"]), dict(state["norms"])
