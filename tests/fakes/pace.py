"""Seconds of processor time per optimiser step, without what a stage does before and after."""

import time
from statistics import median

from mcit.train import loop
from tests.fakes.bench import run_plan


def seconds_per_step(plan, folder, monkeypatch):
    """Median over the steps of all stages but the first two of each."""
    spent, run_step = [], loop.run_step

    def timed(work, batches):
        started = time.process_time()
        found = run_step(work, batches)
        if work.ctx.step > 1:
            spent.append(time.process_time() - started)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_step", timed)
        run_plan(plan, folder)
    return median(spent)
