"""Prototypes: push embeddings of forgotten rows away from where they were, hold those of retained rows there.

Paper: Zhao et al., "Practical Continual Forgetting for Pre-trained Vision Models" (GS-LoRA++), arXiv:2501.09705. Beside
`bounded_forget` and `group_sparse` it is GS-LoRA++: preset ``gs_lora_pp``.
Hooks: streams (rows without the key are refused; none is opened), on_stage_start (the prototypes and the bound), loss_term
(streams ``forget`` and ``task``).
State: "targets" and "push", names of the prototypes and their bound; tensor "prototype" (K, D).
Shapes: B rows, D hidden, K targets.

A prototype is the mean embedding of the rows of one target under the model that enters the stage. Rows to forget cost
``max(0, bound - distance)``, retained ones their distance. Where a target is both forgotten and retained, the prototype is
that of the rows to forget. The median bound is over retained rows drawn by the stage's seed. Another method opens stream
``forget``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import DataError, TrainingError
from mcit.core.interfaces import DataContext, StageContext, StepContext
from mcit.core.types import Batch, Claims, JsonDict, LossSum, ModelOutput, Row, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.forgetting import drawn
from mcit.methods.formulas.prototypes import distances, embed, median_distance

_SAMPLE = 256
"""Retained rows that the median bound is of, where no retained row is held."""
Passed = Iterator[tuple[Batch, ModelOutput]]


class Prototypes(Method):
    """Distances of embeddings from where they were when the stage began."""

    name = "prototypes"
    claims = Claims(needs=frozenset({"hidden:last", "stream:forget"}))

    class Config(MethodConfig):
        """Settings of push and hold."""

        forget: float = Field(1.0, ge=0)
        """Factor of ``max(0, bound - distance)`` on forgotten rows."""
        retain: float = Field(0.0, ge=0)
        """Factor of the distance on retained rows; 0 in every script of the authors."""
        distance: Literal["cosine", "l2", "kl"] = "cosine"
        """``kl`` is the authors' (a softmax over features), ``l2`` their option."""
        bound: Literal["median"] | float = "median"
        """``median`` of the distances between forgotten and retained prototypes, or a number."""
        by: str = "answer"
        """What rows of one prototype have in common: ``answer``, ``task`` or ``meta.<key>``."""
        reduction: Literal["rows", "authors"] = "rows"
        """The bound is on each row, or on the mean of the whole batch: then one rank and one micro-batch."""

    def __init__(self, config: Prototypes.Config) -> None:
        super().__init__(config)
        self._targets: list[str] = []
        self._push = 0.0

    @property
    def _on(self) -> bool:
        return self.config.forget > 0 or self.config.retain > 0

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """None. Raises DataError for a row to forget that has no target."""
        for row in ctx.forget_rows() if self._on else ():
            _target(row, self.config.by)
        return {}

    def on_stage_start(self, ctx: StageContext) -> None:
        """Mean embeddings by target, of the model as it comes in."""
        self._targets, self._push = [], 0.0
        self.tensors.drop("prototype")
        if not self._on:
            return
        c = self.config
        away = self._embedded(ctx.forward_pass("forget"))
        rows = drawn(ctx.data.stage_rows(), None if c.retain else _SAMPLE, ctx.seed)
        stay = self._embedded(ctx.forward_pass(rows))
        away_KD = torch.stack([torch.stack(found).mean(0) for found in away.values()])
        kept = [name for name in stay if name not in away]
        stay_KD = torch.stack([torch.stack(stay[name]).mean(0) for name in kept]) if kept else away_KD[:0]
        if c.bound == "median" and not kept:
            what = f"every retained row has a '{c.by}' that is also forgotten, so no distance can be a bound"
            raise DataError(what, where=self.name, fix="give bound as a number, or group by something else")
        self._push = median_distance(away_KD, stay_KD, c.distance) if c.bound == "median" else float(c.bound)
        self._targets = [*away, *kept]
        self.tensors.put("prototype", "all", torch.cat([away_KD, stay_KD]))

    def _embedded(self, passed: Passed) -> dict[str, list[Tensor]]:
        """Embeddings of rows by target."""
        found: dict[str, list[Tensor]] = {}
        for batch, out in passed:
            for row, e_D in zip(batch.rows, self._embed(out, batch).cpu(), strict=True):
                found.setdefault(_target(row, self.config.by), []).append(e_D)
        return found

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Push on stream ``forget``, hold on stream ``task``; sums over rows."""
        c = self.config
        if batch.stream == "task" and c.retain:
            return LossSum(c.retain * self._moved(out, batch).sum(), per="rows")
        if batch.stream != "forget" or not c.forget:
            return None
        away_B, rows = self._moved(out, batch), ctx.counts.of("forget", "rows")
        if c.reduction == "rows":
            return LossSum(c.forget * torch.relu(self._push - away_B).sum(), per="rows")
        if rows != len(batch.rows):
            what = (
                f"reduction: authors is a mean of the whole batch, but this one holds {len(batch.rows)} of {rows} rows"
            )
            raise TrainingError(what, where=self.name, fix="use one rank and one micro-batch, or reduction: rows")
        return LossSum(c.forget * rows * torch.relu(self._push - away_B.mean()), per="rows")

    def _embed(self, out: ModelOutput, batch: Batch) -> Tensor:
        return embed(out.hidden_BTD, batch.labels_BT)

    def _moved(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Distance of each supervised row from its prototype, (B,) or fewer."""
        e_BD = self._embed(out, batch)
        places = {name: i for i, name in enumerate(self._targets)}
        found = [places.get(_target(row, self.config.by)) for row in batch.rows]
        supervised = (batch.labels_BT[:, 1:] != -100).any(1).tolist()
        known = [(i, k) for i, k in enumerate(found) if k is not None and supervised[i]]
        prototype_KD = self.tensors.get("prototype", "all")
        if prototype_KD is None or not known:
            return e_BD.new_zeros(0)
        mine_BD = prototype_KD[[k for _, k in known]].to(e_BD.device)
        return distances(e_BD[[i for i, _ in known]], mine_BD, self.config.distance)

    def state_dict(self) -> JsonDict:
        """Everything but the prototypes themselves."""
        return {"targets": self._targets, "push": self._push}

    def load_state_dict(self, state: JsonDict) -> None:
        """Take it back."""
        self._targets, self._push = list(state["targets"]), float(state["push"])


def _target(row: Row, by: str) -> str:
    """What a row's prototype is called. Raises DataError for a row without the key."""
    if by in ("answer", "task"):
        return row.answer if by == "answer" else row.task
    key = by.removeprefix("meta.")
    if key not in row.meta:
        raise DataError(f"the row has no meta '{key}'", where=row.where, fix="change prototypes' `by`")
    return str(row.meta[key])
