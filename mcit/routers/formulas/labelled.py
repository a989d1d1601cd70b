"""Rows of a stage as classes know them: which rows are looked at, what they have in common, where the model has them.

Shapes: N rows, B of a batch, T positions, D features.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mcit.core.interfaces import PoolContext
from mcit.core.types import Row

OTHER = "…"
"""Label of the rows whose answer is none of the most frequent ones."""


def drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """At most `count` of the rows, drawn by `seed`, in their order."""
    places = random.Random(f"{seed}/self_refined").sample(range(len(rows)), min(count, len(rows)))
    return [rows[k] for k in sorted(places)]


def labels_of(rows: Sequence[Row], classes: str, *, most: int) -> list[str]:
    """What each row's class is called: nothing (``stage``), its task, or its answer if that is one of the `most` frequent."""
    if classes == "stage":
        return ["" for _ in rows]
    labels = [row.task if classes == "task" else row.answer for row in rows]
    often = {label for label, _ in sorted(Counter(labels).items(), key=lambda c: (-c[1], c[0]))[:most]}
    return [label if label in often else OTHER for label in labels]


def features(rows: Sequence[Row], ctx: PoolContext) -> Tensor:
    """Last hidden state at the token before each row's last answer, (N, D) fp32; the same on every rank."""
    parts = []
    for batch, out in ctx.forward_pass(rows):
        answer_BT = batch.answer_BT
        begins_BT = answer_BT[:, 1:] & ~answer_BT[:, :-1]  # place t: the answer begins at t + 1
        place_B = begins_BT.shape[1] - 1 - begins_BT.flip(1).int().argmax(1)
        hidden_BTD = out.hidden["last"]
        parts.append(hidden_BTD[torch.arange(len(place_B)), place_B.to(hidden_BTD.device)].float().cpu())
    return torch.cat(parts)
