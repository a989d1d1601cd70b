"""A method that orders the task's rows and shows each of them twice, side by side.

Paper: none; a stand-in for methods of many views such as View-Batch, arXiv:2407.13841.
Hooks: order (every row twice in a row, over two epochs), on_row (the second view), loss_term (distance of the two losses).
State: none.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import StepContext
from mcit.core.types import Batch, Claims, Draw, LossSum, ModelOutput, PictureChange, Row, Turn
from mcit.methods.base import Method


class TwoViews(Method):
    """Both views of a row stand next to each other in one micro-batch."""

    name = "two_views"
    claims = Claims(slots=frozenset({"order:task"}), groups={"task": 2})

    class Config(MethodConfig):
        """Settings of the views."""

        weight: float = Field(0.5, ge=0)
        """Factor of the squared distance between the mean losses of two views."""

    def order(self, stream: str, epoch: int, count: int, seed: int) -> Sequence[Draw]:
        """Places 2k and 2k + 1 of two epochs together are the views of row k."""
        first = (epoch % 2) * count
        return [((first + place) // 2, (first + place) % 2) for place in range(count)]

    def on_row(self, row: Row, view: int, seed: int) -> Row:
        """Asked more politely, with a brighter picture."""
        asked = row.turns[-2]
        polite = Turn(asked.role, f"{asked.text} Please.")
        bright = replace(row.encoding, changes=(PictureChange("brightness", (1.2,)),))
        return replace(row, turns=(*row.turns[:-2], polite, row.turns[-1]), encoding=bright)

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Over pairs of neighbours; a rank without rows has a single unsupervised one."""
        if batch.stream != "task" or self.config.weight == 0:
            return None
        mean_B = torch.stack([out.nll_N[out.row_N == row].sum() for row in range(len(batch.rows))])
        pairs = [k for k in range(len(batch.rows) - 1) if batch.views[k : k + 2] == (0, 1)]
        distances = [(mean_B[k] - mean_B[k + 1]).pow(2) for k in pairs]
        return LossSum(self.config.weight * torch.stack(distances).sum(), per="rows") if distances else None
