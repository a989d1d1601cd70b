"""How well the tasks so far are answered while a stage trains: teacher-forced, on the same few rows each time.

Per task the mean negative log-likelihood of an answer token, and the share of answer tokens that are the most likely one.
Rows are drawn by the stage's seed from the task's validation split, or its training rows where it has none.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from mcit.core.config import Field
from mcit.core.interfaces import DataContext, ProbeContext
from mcit.core.types import JsonDict, Row
from mcit.probes.base import Probe, ProbeConfig


class Seen(Probe):
    """Answer loss and next-token accuracy of every task seen so far."""

    class Config(ProbeConfig):
        """Settings of the rows."""

        count: int = Field(32, ge=1)
        """Rows per task."""

    def rows(self, data: DataContext) -> Mapping[str, Sequence[Row]]:
        """`count` rows of each task of this stage and of earlier ones."""
        out = {}
        for task in data.tasks:
            every = data.rows(task, "validation") or data.rows(task, "train")
            places = random.Random(f"{data.seed}/seen/{task}").sample(
                range(len(every)), min(self.config.count, len(every))
            )
            out[task] = [every[place] for place in sorted(places)]
        return out

    def measure(self, rows: Mapping[str, Sequence[Row]], ctx: ProbeContext) -> JsonDict:
        """``{task: {loss, accuracy, tokens}}``."""
        return {task: self._task(mine, ctx) for task, mine in rows.items() if mine}

    def _task(self, rows: Sequence[Row], ctx: ProbeContext) -> JsonDict:
        sums = torch.zeros(3, dtype=torch.float64)
        for _, out in ctx.forward_pass(rows, share=True):
            right = (out.logits_NV.argmax(-1) == out.targets_N).sum()
            sums += torch.tensor([float(out.nll_N.sum()), float(right), len(out.nll_N)], dtype=torch.float64)
        loss, right, tokens = ctx.all_sum(sums).tolist()
        return {"loss": loss / tokens, "accuracy": right / tokens, "tokens": int(tokens)}
