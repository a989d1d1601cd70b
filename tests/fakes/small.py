"""Small methods, one per extension of the contract: what the contract suite trains beside the shipped ones.

`kill_after` makes the process "die" at the n-th `moment` that a method passes.
"""

from mcit.core.config import Field, MethodConfig
from mcit.core.types import Claims, LossSum
from mcit.methods.base import Method


class Killed(Exception):
    """Stands for a process that is gone."""


_left = None


def kill_after(moments):
    """Die at the next moment but so many; None is never."""
    global _left
    _left = moments


def moment():
    global _left
    if _left is None:
        return
    _left -= 1
    if _left < 0:
        _left = None
        raise Killed


class RowFisher(Method):
    """Passes outside steps: a squared gradient per row at the end of a stage holds weights in the next ones."""

    claims = Claims(needs=frozenset({"names:kept", "adapter:lora"}))
    penalty_kinds = frozenset({"lora"})

    class Config(MethodConfig):
        rows: int = Field(6, ge=1)

    def on_stage_end(self, ctx):
        seen = 0
        for batch, grads in ctx.gradient_pass(
            "task", limit=self.config.rows, loss=lambda out, b: LossSum(out.nll_N.sum(), "rows")
        ):
            moment()
            seen += len(batch.rows)
            for unit in grads.units("lora"):
                for role, gradient in grads.full(unit).items():
                    self.tensors.accumulate("fisher", unit.params[role], gradient.square(), 0.5)
        logits = sum(out.logits_NV.double().sum() for _, out in ctx.forward_pass("task", limit=self.config.rows))
        for _, grads in ctx.gradient_pass(ctx.data.stage_rows()[:4], rows=4, share=True, effective=True):
            moment()
            first = grads.units("lora")[0]
            self.tensors.put("effective", first.name, grads.effective(first))
        for unit in ctx.weights.units("lora"):
            with ctx.weights.gathered(unit) as tensors:
                for role, tensor in tensors.items():
                    self.tensors.put("anchor", unit.params[role], tensor)
        ctx.log("row_fisher/rows", float(seen))
        ctx.log("row_fisher/logits", logits)

    def weight_penalty(self, unit, tensors, ctx):
        total = None
        for role, name in unit.params.items():
            fisher, anchor = self.tensors.get("fisher", name), self.tensors.get("anchor", name)
            if fisher is not None and anchor is not None:
                device = tensors[role].device
                part = (fisher.to(device) * (tensors[role] - anchor.to(device)) ** 2).sum()
                total = part if total is None else total + part
        return None if total is None else 1e3 * total


class TwoPass(Method):
    """Passes of a step: the gradient at a worse place nearby, on the host's loss, and half of the one here."""

    claims = Claims(slots=frozenset({"step:passes"}))
    step_passes = 2.0
    step_copies = 3

    class Config(MethodConfig):
        rho: float = Field(0.05, ge=0)

    def passes(self, step, ctx):
        step.accumulate()
        here = step.take()
        moment()
        norm = step.norm(here)

        def climb(unit, tensors):
            for role, gradient in here.full(unit).items():
                tensors[role] += self.config.rho * gradient / norm.to(gradient)

        with step.moved(climb):
            moment()
            step.accumulate()
        step.add(here, 0.5)
