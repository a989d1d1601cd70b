"""Refresh learning: before a step is learned, unlearn a little of its rows, along the gradient and with noise.

Paper: Wang et al., "A Unified and General Framework for Continual Learning", ICLR 2024, arXiv:2403.13249: every iteration
unlearns the current batch by preconditioned noisy ascent and relearns it by the host method's loss. In general form
``theta + gamma F^-1 grad L + N(0, 2 gamma F^-1)``. This file follows the authors' released code, which nudges each
tensor by `delta` times its own norm: ``theta += delta (n + noise * eps) / (1 + damping F)``, n along the gradient of the
batch's token loss with the norm of theta (the code's inner learning rate cancels in n).
Hooks: passes (the unlearning pass on stream ``task`` alone, then the ordinary one), on_stage_end (importances F).
State: tensors "fisher" by parameter name, with `damping` above 0 only; F = 0 before the first stage has ended.

F is per row: the squared gradient of the answer's log-likelihood times the answer's probability, averaged over rows, and
``F <- fisher_decay F + F_new``, where a decay of 1e-5 practically forgets the old one. Weights are changed in fp32, for a step
of 1e-5 rounds to nothing in bf16. eps is drawn per tensor from (stage seed, step, name): the same on every engine and after a
resume, and no other random number moves. A tensor of zeros (LoRA's B at its start) gets the noise alone.

Differs from the released code: any host method instead of DER++; F on rows drawn by the stage's seed instead of all; the
unlearning pass has the dropout of training; `every` m-th step on request. F belongs to tensors by name, so `damping` needs
`carry: keep` or full fine-tuning (need names:kept).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StageContext, StepContext, StepPasses
from mcit.core.seeds import seed_for
from mcit.core.types import Batch, Claims, LossSum, ModelOutput
from mcit.methods.base import Method
from mcit.methods.formulas.unlearning import unlearning_step


class Refresh(Method):
    """Unlearn, then relearn, in every step of any host method."""

    name = "refresh"
    step_copies = 1

    class Config(MethodConfig):
        """Settings of the unlearning step."""

        delta: float = Field(1e-5, ge=0)
        """Size of the step as a share of a tensor's norm; 0 unlearns nothing."""
        noise: float = Field(1e-3, ge=0)
        """Factor of the standard normal noise inside the step."""
        damping: float = Field(1e-3, ge=0)
        """Factor of F in the divisor 1 + damping F; 0 keeps no F."""
        fisher_decay: float = Field(1e-5, ge=0, le=1)
        """Share of the old F that stays when a stage's is added."""
        rows: int = Field(200, ge=1)
        """Rows of the stage that F is estimated on."""
        every: int = Field(1, ge=1)
        """Unlearn in every so many steps."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.step_passes = 1 + (1 / config.every if config.delta else 0)

    @property
    def claims(self) -> Claims:
        """F is kept by parameter name."""
        needs = frozenset({"names:kept"} if self.config.damping and self.config.delta else ())
        return Claims(slots=frozenset({"step:passes"}), needs=needs)

    def state_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, stages: int) -> int:
        """An fp32 F of every trained tensor."""
        return sum(4 * math.prod(shape) for shape in shapes.values()) if self.config.damping else 0

    def passes(self, step: StepPasses, ctx: StepContext) -> None:
        """Ascent on the task's rows, then the step of the host method."""
        if self.config.delta and ctx.step % self.config.every == 0 and "task" in step.streams:
            step.accumulate(["task"], loss=lambda out, batch: LossSum(out.nll_N.sum()))
            upward = step.take()
            for unit in ctx.weights.units():
                gradients = upward.full(unit)
                with ctx.weights.edit(unit) as tensors:
                    for role, weight in tensors.items():
                        weight += self._step(weight, gradients[role], unit.params[role], ctx)
        step.accumulate()

    def _step(self, weight: Tensor, gradient: Tensor, name: str, ctx: StepContext) -> Tensor:
        c = self.config
        generator = torch.Generator().manual_seed(seed_for(ctx.stage.seed, "refresh", ctx.step, name))
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)
        fisher = self.tensors.get("fisher", name) if c.damping else None
        fisher = None if fisher is None else fisher.to(weight.device)
        return unlearning_step(weight, gradient, noise, fisher, delta=c.delta, noise_scale=c.noise, damping=c.damping)

    def on_stage_end(self, ctx: StageContext) -> None:
        """Estimate F on rows of the stage."""
        c = self.config
        if not (c.damping and c.delta):
            return
        rows = list(ctx.data.stage_rows())
        rows = random.Random(f"{ctx.seed}/refresh").sample(rows, min(c.rows, len(rows)))
        for name in self.tensors.names("fisher"):
            self.tensors.put("fisher", name, c.fisher_decay * self.tensors.require("fisher", name))
        answer: list[Tensor] = []

        def log_likelihood(out: ModelOutput, batch: Batch) -> LossSum:
            answer[:] = [out.nll_N.detach().sum()]
            return LossSum(out.nll_N.sum(), per="rows")

        for _, grads in ctx.gradient_pass(rows, loss=log_likelihood):
            share = (-answer[0]).exp() / len(rows)
            for unit in grads.units():
                for role, gradient in grads.full(unit).items():
                    self.tensors.accumulate("fisher", unit.params[role], gradient.square() * share)
