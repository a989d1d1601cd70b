"""Small methods, one per extension of the contract: what the contract suite trains beside the shipped ones.

`kill_after` makes the process "die" at the n-th `moment` that a method passes.
"""

from dataclasses import replace

from mcit.core.config import Field, MethodConfig
from mcit.core.types import Claims, LossSum, StreamSpec
from mcit.methods.base import Method
from mcit.routers.base import Router


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


class Tuner(Method):
    """Inner fine-tuning: the first and last adapted pair on old rows, twice in a stage and at its end."""

    claims = Claims(slots=frozenset({"weights:edit"}))

    def _tune(self, ctx):
        def loss(out, batch):
            moment()
            return LossSum(out.nll_N.sum())

        units = ctx.weights.units("lora")
        names = [name for unit in (units[0], units[-1]) for name in unit.params.values()]
        losses = ctx.fine_tune(ctx.data.stage_rows()[:12], names=names, steps=3, lr=5e-3, batch=4, loss=loss)
        ctx.log("tuner/loss", losses[-1])

    def after_step(self, ctx):
        if ctx.step % 2 == 1:
            self._tune(ctx)

    def on_stage_end(self, ctx):
        self._tune(ctx)


class Ender(Method):
    """Early end: the first stage stops after its third step."""

    def __init__(self, config):
        super().__init__(config)
        self._seen = 0

    def after_step(self, ctx):
        self._seen += 1
        if ctx.stage.index == 1 and self._seen == 3:
            ctx.end_stage("three are enough")

    def on_stage_end(self, ctx):
        moment()
        ctx.log("ender/steps", float(self._seen))

    def state_dict(self):
        return {"seen": self._seen}

    def load_state_dict(self, state):
        self._seen = state["seen"]


class Chooser(Method):
    """A stream whose rows it chooses by how often it took them, and shows in other words."""

    claims = Claims(slots=frozenset({"choose:again"}), streams=frozenset({"again"}))

    def __init__(self, config):
        super().__init__(config)
        self._taken = {}

    def streams(self, ctx):
        return {"again": StreamSpec(ctx.stage_rows(), 2)}

    def on_stage_start(self, ctx):
        self._taken = {}

    def choose(self, stream, count, size, ctx):
        moment()
        rows = sorted(range(count), key=lambda row: (self._taken.get(str(row), 0), -row))[:size]
        self._taken.update({str(row): self._taken.get(str(row), 0) + 1 for row in rows})
        return [(row, 1 + ctx.step % 3) for row in rows]

    def on_row(self, row, view, seed):
        moment()
        first, *rest = row.turns
        return replace(row, turns=(replace(first, text=f"{first.text} {'so ' * view}"), *rest))

    def loss_term(self, out, batch, ctx):
        return LossSum(out.nll_N.sum(), "tokens") if batch.stream == "again" else None

    def state_dict(self):
        return {"taken": self._taken}

    def load_state_dict(self, state):
        self._taken = dict(state["taken"])


class Joiner(Router):
    """A member per task, which a later stage of the task goes on training."""

    def __init__(self, config):
        super().__init__(config)
        self._tasks = {}

    def join(self, members, data):
        moment()
        return next((self._tasks[task.name] for task in data.stage.tasks if task.name in self._tasks), None)

    def learn(self, member, ctx):
        for task in ctx.stage.tasks:
            moment()
            self._tasks[task.name] = member
            moment()

    @staticmethod
    def route(rows, members, state, tensors, states):
        return [state["tasks"].get(row["task"], members[-1]) for row in rows]

    def state_dict(self):
        return {"tasks": self._tasks}

    def load_state_dict(self, state):
        self._tasks = dict(state["tasks"])
