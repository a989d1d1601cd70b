"""The language-model loss: a mean over the answer tokens of the whole optimiser step, however it is cut."""

from __future__ import annotations

from torch import Tensor

from mcit.core.types import Batch, Counts, ModelOutput


def task_loss(out: ModelOutput, batch: Batch, counts: Counts, *, replaced: bool) -> Tensor:
    """Sum of token losses over the step's count of answer tokens of stream ``task``; zero on every other stream.

    `replaced` is true when a method holds the slot objective:task and gives that loss itself.
    """
    if batch.stream != "task" or replaced:
        return out.nll_N.new_zeros(())
    return out.nll_N.sum() / counts.of("task", "tokens")
