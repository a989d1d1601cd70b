"""Optimistic replay: rows that the model has long satisfied are no longer replayed, but looked at now and then.

A hypothesis of ours, and no reproduction. The name and the thought come from "optimistic forgetting" in safe reinforcement
learning, arXiv:2501.04481, of whose algorithm we know the abstract alone; nothing here is a claim about that paper. The memory
and the loss are those of `replay` (Rolnick et al., arXiv:1811.11682).
Hooks: streams (the kept rows), choose (rows of a step), loss_term (their token loss), after_step (who satisfied), on_stage_end.
State: that of `replay`; "satisfied", how often in a row each kept row was satisfied, by task and id.
Shapes: B rows, N supervised tokens.

A replayed row is a probe that costs nothing: the step computes its loss anyway (before its update, dropout included). After
`patience` probes in a row with a mean loss per answer token below `threshold` the row is evicted: it is trusted to stay
satisfied, in later stages too, and its places in the steps go to the others. A share `audit` of the places is drawn from the
evicted rows; one that is found above the threshold comes back. ``audit: 0`` is the ablation: nothing ever comes back, and
once all rows are evicted the stream has no loss. A step always reads `per_step` rows, so eviction moves the budget and
saves no time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcit.core.config import Field
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, Draw, JsonDict, LossSum, ModelOutput, StreamSpec
from mcit.methods.formulas.forgetting import row_key, row_means
from mcit.methods.replay import Replay


class OptimisticReplay(Replay):
    """Replay of the rows that need it."""

    name = "optimistic_replay"
    claims = Claims(slots=frozenset({"choose:replay"}), streams=frozenset({"replay"}))

    class Config(Replay.Config):
        """When a row is evicted, and how many of those are looked at."""

        threshold: float = Field(0.2, ge=0)
        """Mean loss per answer token below which a row is satisfied; 0 evicts nothing."""
        patience: int = Field(3, ge=1)
        """Satisfied probes in a row after which a row is evicted."""
        audit: float = Field(0.1, ge=0, le=1)
        """Share of the replayed places that is drawn from evicted rows; 0 never looks at them again."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._satisfied: dict[str, int] = {}
        self._places: dict[str, int] = {}
        self._losses: list[Tensor] = []

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over all kept rows, evicted ones too; none in the first stage."""
        opened = super().streams(ctx)
        self._places = {row_key(row): k for spec in opened.values() for k, row in enumerate(spec.rows)}
        return opened

    def _evicted(self) -> list[int]:
        patience = self.config.patience
        return [place for key, place in self._places.items() if self._satisfied.get(key, 0) >= patience]

    def _idle(self) -> bool:
        return not self.config.audit and len(self._evicted()) == len(self._places)

    def choose(self, stream: str, count: int, size: int, ctx: StepContext) -> Sequence[Draw]:
        """Rows that are not evicted, and with a probability of `audit` per place an evicted one; by seed and step."""
        draw = random.Random(f"{ctx.stage.seed}/{self.name}/{ctx.step}")
        evicted = self._evicted()
        held = sorted(set(range(count)) - set(evicted))
        audits = sum(draw.random() < self.config.audit for _ in range(size)) if evicted and held else 0
        audits = audits if held else size
        return [(place, 0) for place in (*some(draw, held, size - audits), *some(draw, evicted, audits))]

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of the replayed rows; what each of them has is kept for `after_step`."""
        term = super().loss_term(out, batch, ctx)
        if term is not None and self._idle():
            return LossSum(0.0 * term.sum)
        if term is not None and not ctx.again:
            mean_B, count_B = row_means(out.nll_N.detach(), out.row_N, torch.ones_like(out.row_N), rows=len(batch.rows))
            place_B = torch.tensor([self._places[row_key(row)] for row in batch.rows], device=mean_B.device)
            zero = mean_B.new_zeros(2, len(self._places), dtype=torch.float64)
            real_B = (count_B > 0).double()
            self._losses.append(zero.index_add(1, place_B, torch.stack([mean_B.double() * real_B, real_B])))
        return term

    def after_step(self, ctx: StepContext) -> None:
        """Count who satisfied once more, evict and take back."""
        if not self._losses:
            return
        total_P, seen_P = ctx.all_sum(torch.stack(self._losses).sum(0)).tolist()
        self._losses, before = [], set(self._evicted())
        for key, place in self._places.items():
            if seen_P[place]:
                loss = total_P[place] / seen_P[place]
                self._satisfied[key] = satisfied(self._satisfied.get(key, 0), loss, self.config.threshold)
        now = set(self._evicted())
        ctx.log(f"{self.name}/evicted", float(len(now)))
        ctx.log(f"{self.name}/readmitted", float(len(before - now)))

    def on_stage_end(self, ctx: StageContext) -> None:
        """Choose rows of the stage that just ended; of rows that left the memory nothing stays."""
        super().on_stage_end(ctx)
        kept = {f"{task}/{name}" for task, names in self._memory.state()["kept"] for name in names}
        self._satisfied = {key: count for key, count in self._satisfied.items() if key in kept}

    def state_dict(self) -> JsonDict:
        """What is kept of which task, and for how long each row was satisfied."""
        return {**super().state_dict(), "satisfied": dict(sorted(self._satisfied.items()))}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self._satisfied = dict(state["satisfied"])


def satisfied(before: int, loss: float, threshold: float) -> int:
    """Satisfied probes in a row after one more; a loss at the threshold or above begins anew."""
    return before + 1 if loss < threshold else 0


def some(draw: random.Random, places: Sequence[int], count: int) -> list[int]:
    """`count` of the places, none twice before all of them came once."""
    out: list[int] = []
    while len(out) < count:
        out += draw.sample(places, min(len(places), count - len(out)))
    return out
