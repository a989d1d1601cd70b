"""The stability gap: every few steps the same rows of every task seen so far.

Paper: De Lange, van de Ven and Tuytelaars, "Continual evaluation for lifelong learning: identifying the stability gap",
ICLR 2023, arXiv:2205.13452, section 3 (protocol, metrics) and section 5 (norms of the two gradients).
Measured on every due step (tier A): mean loss of an answer token, and the share of rows all of whose answer tokens are the
likeliest ones. Generated answers, scored (tier B): after the last step, and once after the first minimum of tier A, which
is known one measurement later. Metrics are made by the report; see ``docs/probes.md``.

Differs from the paper: teacher-forced accuracy takes the place of classification, rows are drawn once for ever and not before
each iteration, and the first and the last step of every stage are always measured.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from mcit.core.config import Field
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, ProbeContext
from mcit.core.types import JsonDict, Plan, Row
from mcit.probes.base import Probe, ProbeConfig, fixed_rows, task_problems

NORMS = "norms"
"""Name of the rows that gradients are taken on, beside the names of tasks."""


class Stability(Probe):
    """Answer loss and token-match accuracy of tasks seen so far, dense at a stage's beginning."""

    class Config(ProbeConfig):
        """Rows and moments."""

        dense: int | None = Field(100, ge=0)
        """Steps of a stage in which `every` holds; None: all of them."""
        later: int = Field(100, ge=1)
        """Steps between two measurements after these."""
        rows: int = Field(64, ge=1)
        """Rows per task, the same ones in the whole run."""
        split: Literal["validation", "test"] = "validation"
        """Where they are drawn from; a task without validation rows gives test rows."""
        answers: int = Field(16, ge=0)
        """Of these rows, how many are answered by generation (tier B); 0 generates nothing."""
        norms: int = Field(50, ge=0)
        """Steps of a stage up to which gradient norms are measured where methods add to the loss; 0 never does."""
        norm_rows: int = Field(4, ge=1)
        """Training rows of the stage that gradients are taken on, in one pass."""
        tasks: list[str] = []
        """Tasks to measure once they are seen; empty: all of them."""

    def check(self, plan: Plan) -> list[Problem]:
        """Tasks that no stage trains."""
        return task_problems(self.config.tasks, plan)

    def due(self, step: int, total: int) -> bool:
        """Every `every` steps at first, every `later` ones then."""
        config = self.config
        dense = config.dense is None or step <= config.dense
        return step in (0, total) or step % (config.every if dense else config.later) == 0

    def rows(self, data: DataContext) -> Mapping[str, Sequence[Row]]:
        """Fixed rows of each task seen so far, and the training rows that gradients are taken on."""
        wanted = [task for task in data.tasks if task in self.config.tasks or not self.config.tasks]
        out = {task: fixed_rows(data, task, self.config.rows, self.config.split) for task in wanted}
        train = data.stage_rows()
        if self.config.norms and len(train):
            draw = random.Random(f"stability/{NORMS}/{data.seed}")
            out[f" {NORMS}"] = [
                train[k] for k in draw.sample(range(len(train)), min(self.config.norm_rows, len(train)))
            ]
        return out

    def measure(self, rows: Mapping[str, Sequence[Row]], ctx: ProbeContext) -> JsonDict:
        """``tasks``, ``norms`` and ``answers``; ``settings`` with the first measurement of a stage."""
        tasks = {name: mine for name, mine in rows.items() if not name.startswith(" ") and mine}
        values: JsonDict = {"tasks": {task: self._fit(mine, ctx) for task, mine in tasks.items()}}
        if ctx.step == 0:
            values["settings"] = {k: getattr(self.config, k) for k in ("every", "dense", "later", "rows")}
        if ctx.step <= self.config.norms and ctx.stage.methods and rows.get(f" {NORMS}"):
            norms = ctx.gradient_norms(rows[f" {NORMS}"])
            values |= {NORMS: norms} if len(norms) > 1 else {}
        if self.config.answers and tasks and (ctx.step == ctx.total_steps or self._after_minimum(values, ctx)):
            few = {task: mine[: self.config.answers] for task, mine in tasks.items()}
            made = ctx.within("answers", lambda: {task: ctx.score(task, mine) for task, mine in few.items()})
            values |= {"answers": made} if made is not None else {}
        return values

    def _fit(self, rows: Sequence[Row], ctx: ProbeContext) -> JsonDict:
        fits = ctx.fits(rows)
        tokens = sum(fit.tokens for fit in fits)
        loss = sum(fit.nll * fit.tokens for fit in fits) / max(1, tokens)
        right = sum(fit.right == fit.tokens for fit in fits)
        return {"loss": loss, "accuracy": right / len(rows), "rows": len(rows)}

    def _after_minimum(self, values: JsonDict, ctx: ProbeContext) -> bool:
        """Whether the loss of earlier tasks fell now for the first time after it had risen in this stage."""
        current = {task.name for task in ctx.stage.tasks}
        lines = [line["values"] for line in ctx.earlier if "values" in line]
        losses = [
            sum(entry["loss"] for task, entry in line["tasks"].items() if task not in current)
            for line in [*lines, values]
        ]
        turns = [a < b > c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
        return bool(turns) and turns[-1] and not any(turns[:-1])
