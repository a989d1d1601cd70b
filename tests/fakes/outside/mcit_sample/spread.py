"""A probe: how far the answer losses of a task's rows lie apart; with draws from a generator of its own."""

import random

import torch

from mcit.core.config import Field
from mcit.probes.base import Probe, ProbeConfig


class Spread(Probe):
    """Standard deviation over rows, per task of the stage."""

    class Config(ProbeConfig):
        """Settings of the rows."""

        count: int = Field(6, ge=2)
        """Rows per task."""

    def rows(self, data):
        """Drawn anew in every stage."""
        draw = random.Random(data.seed)
        return {task.name: draw.sample(list(data.rows(task.name)), self.config.count) for task in data.stage.tasks}

    def measure(self, rows, ctx):
        """One number per task, and how often it was measured before."""
        out = {"before": len(ctx.earlier)}
        for task, mine in rows.items():
            means = []
            for batch, found in ctx.forward_pass(mine, rows=3):
                means += [float(found.nll_N[found.row_N == k].mean()) for k in range(len(batch.rows))]
            out[task] = float(torch.tensor(means).std())
        return out
