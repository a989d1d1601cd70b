"""The language-model loss: a mean over the answer tokens of the whole optimiser step, however it is cut."""

from __future__ import annotations

from torch import Tensor

from mcit.core.types import Batch, Counts, LossSum, ModelOutput


def task_loss(out: ModelOutput, batch: Batch, counts: Counts, *, replaced: bool) -> Tensor:
    """Sum of token losses over the step's count of answer tokens of stream ``task``; zero on every other stream.

    `replaced` is true when a method holds the slot objective:task and gives that loss itself.
    """
    if batch.stream != "task" or replaced:
        return out.nll_N.new_zeros(())
    return out.nll_N.sum() / counts.of("task", "tokens")


def token_loss(out: ModelOutput, batch: Batch) -> LossSum:
    """Mean negative log-likelihood of the answer tokens: the loss of a pass whose method gives none."""
    return LossSum(out.nll_N.sum())


def normalised(term: LossSum | None, out: ModelOutput, batch: Batch, counts: Counts) -> Tensor:
    """A loss sum over its count, in fp32; zero where there is none."""
    if term is None:
        return out.nll_N.new_zeros(())
    return (term.sum / counts.of(batch.stream, term.per)).float()
