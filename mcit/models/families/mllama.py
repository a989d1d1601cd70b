"""Mllama (Llama 3.2 Vision): pictures reach the text through cross attention, which ties the rows of a batch together.

In transformers a position that sees no picture attends to every vision token of its row instead of none
(``MllamaTextCrossAttention``; only the MLP after it is masked). Rows that are padded to another number of pictures, and rows
of text beside rows with pictures, so get other logits than alone.
"""

from __future__ import annotations

from collections.abc import Set

from mcit.models.families.hf import materialize, pending

__all__ = ["counts_problem", "materialize", "pending"]


def counts_problem(counts: Set[int]) -> str:
    """Why rows with these numbers of pictures cannot share batches; empty when they can."""
    if len(counts) <= 1:
        return ""
    shown = ", ".join(map(str, sorted(counts)))
    return (
        f"rows have different numbers of pictures ({shown}), and in this model's cross attention such rows of one batch "
        "change each other's answers"
    )
