"""IdkDPO and AltPO: prefer another answer to the one to forget.

Paper: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024, arXiv:2401.06121 (preference for "I don't
know"), with the loss of Rafailov et al., arXiv:2305.18290, in the scale of NPO: ``-(2 / beta) log sigmoid(beta ((S_l -
S_l_ref) - (S_w - S_w_ref)))``, S summed negative log-likelihoods, l the true answer and w the other. With plausible
other answers instead of refusals it is Mekala et al., "Alternate Preference Optimization for Unlearning Factual
Knowledge in LLMs", arXiv:2409.13474: preset ``alt_po``.
Hooks: streams (``pair``: each row twice), order (both of a pair side by side), on_row (the other answer),
on_stage_start (references), loss_term (streams ``pair`` and ``task``).
State: "reference" and "winners", summed losses of the stage-start model by row with the true and with the other answer.
Shapes: B rows, N supervised tokens.

Both rows of a pair share a micro-batch. References are constant and computed once. AltPO's other answers come from the
data (``alternate``); the paper has a model write several per question.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, Draw, JsonDict, LossSum, ModelOutput, Row, StreamSpec, Turn
from mcit.methods.formulas.objectives import preference, row_sums
from mcit.methods.formulas.refusals import REFUSALS, refused_row
from mcit.methods.objective import Objective, of_rows, stored_sums

WINNER = "winner"
"""Key of a row's meta with the other answers, one per answer of the row."""


class IdkDPO(Objective):
    """A preference for another answer over the one to forget."""

    name = "idk_dpo"
    stream = "pair"

    class Config(MethodConfig):
        """Settings of the preference."""

        beta: float = Field(0.1, gt=0)
        """Strength of the tie to the stage-start model; 0.1 in open-unlearning."""
        winner: Literal["refusal", "alternate"] = "refusal"
        """What is preferred: a refusal, or the row's alternate answer."""
        refusals: list[str] = Field(list(REFUSALS), min_length=1)
        """One of these per row, drawn once."""
        gamma: float = Field(1.0, ge=0)
        """Factor of the forget loss."""
        alpha: float = Field(1.0, ge=0)
        """Factor of the retained rows' loss."""
        per_step: int = Field(4, ge=1)
        """Pairs per optimiser step: twice as many rows."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._winners: dict[str, float] = {}

    @property
    def claims(self) -> Claims:
        """The stream of pairs, its order and groups of two."""
        own = super().claims
        if not self.on:
            return own
        return replace(own, slots=own.slots | {"order:pair"}, groups={"pair": 2})

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """The rows to forget, which know their other answers. Raises DataError for a row that has none."""
        return {"pair": StreamSpec(self._rows(ctx), 2 * self.config.per_step)} if self.on else {}

    def _rows(self, ctx: DataContext) -> list[Row]:
        rows = list(ctx.forget_rows())
        if self.config.winner == "alternate":
            others: Sequence[Row] = ctx.alternate_rows()
        else:
            others = [refused_row(row, self.config.refusals, ctx.seed) for row in rows]
        return [replace(row, meta={**row.meta, WINNER: _answers(o)}) for row, o in zip(rows, others, strict=True)]

    def order(self, stream: str, epoch: int, count: int, seed: int) -> Sequence[Draw]:
        """Each row with its own answer and at once with the other one; two epochs go over all rows."""
        places = range(epoch * count, (epoch + 1) * count)
        orders = {n: _permutation(count, f"{seed}/{n}") for n in {place // 2 // count for place in places}}
        return [(orders[place // 2 // count][place // 2 % count], place % 2) for place in places]

    def on_row(self, row: Row, view: int, seed: int) -> Row:
        """View 1 has the other answers."""
        others = iter(row.meta[WINNER])
        return replace(row, turns=tuple(Turn(t.role, next(others)) if t.role == "assistant" else t for t in row.turns))

    def on_stage_start(self, ctx: StageContext) -> None:
        """Summed losses of both answers."""
        rows = self._rows(ctx.data) if self.on else []
        self.reference = stored_sums(ctx, rows)
        self._winners = stored_sums(ctx, [self.on_row(row, 1, 0) for row in rows])

    def forget_loss(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum:
        """The preference of each pair, counted in rows."""
        sum_B, _ = row_sums(out.nll_N, out.row_N, len(batch.rows))
        real = out.real_rows
        losers = [place for place in real if batch.views[place] == 0]
        winners = [place for place in real if batch.views[place] == 1]
        lost_B = sum_B - of_rows(self.reference, batch, sum_B)
        won_B = sum_B - of_rows(self._winners, batch, sum_B)
        return LossSum(2 * preference(lost_B[losers] - won_B[winners], self.config.beta).sum(), per="rows")

    def state_dict(self) -> JsonDict:
        """References by row."""
        return {"reference": self.reference, "winners": self._winners}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take them back."""
        self.reference, self._winners = dict(state["reference"]), dict(state["winners"])


def _answers(row: Row) -> list[str]:
    return [turn.text for turn in row.turns if turn.role == "assistant"]


def _permutation(count: int, seed: str) -> list[int]:
    draw = random.Random(f"pairs/{seed}").random
    return sorted(range(count), key=[draw() for _ in range(count)].__getitem__)
