"""Canaries: rows with made-up codes, planted so that a probe can ask later what is left of them.

Protocol: recognition, recall and retention after few exposures, of A. E. Orhan, "Recognition, recall, and retention of few-shot
memories in large language models", 2023, arXiv:2303.17557. There texts are studied; here pictures and items with a code each.
Hooks: streams (the rows, each as often as it is to be exposed), order (as they stand), loss_term (their token loss).
State: none.

A row that is exposed e times comes once in each of the last e rounds, so that all rows are seen in the last one; rounds are
shuffled by the stage's seed and spread evenly over its steps. In the loss a canary's token weighs as a token of the task.
"""

import math
import random
from collections.abc import Mapping, Sequence

from mcit.core.canaries import ROWS, Planting, plantings
from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext, StepContext
from mcit.core.types import Batch, Claims, Draw, LossSum, ModelOutput, Plan, Stage, StreamSpec
from mcit.methods.base import Method
from mcit.methods.compose import make


class Canary(Method):
    """Trains on planted rows, each exactly as often as asked."""

    name = "canary"
    claims = Claims(streams=frozenset({"canary"}), slots=frozenset({"order:canary"}))

    class Config(MethodConfig):
        """What is planted."""

        weight: float = Field(1.0, ge=0)
        """Factor of the planted rows' loss; 0 plants nothing."""
        recipe: str = "canary/codes"
        """Recipe of the rows; each with ``meta.foil``, the answer of a twin that is never shown."""
        rows: int = Field(ROWS, ge=1)
        """Rows planted in a stage, others in each stage."""
        exposures: list[int] = Field([1, 2, 3], min_length=1)
        """How often rows are shown, in turn."""

    def recipes(self) -> tuple[str, ...]:
        """The canaries."""
        return (self.config.recipe,) if self.config.weight else ()

    def check(self, stage: Stage, plan: Plan) -> list[Problem]:
        """Too few rows, exposures below 1, canaries that a task or another method would train on as well."""
        where, recipe = f"stages[{stage.index - 1}] ({self.name})", self.config.recipe
        found = []
        if min(self.config.exposures) < 1:
            found.append(Problem(f"{where}.exposures", "a planted row is shown at least once", "use numbers from 1"))
        pool = next((pool.rows.get("train", 0) for pool in stage.pools if pool.recipe == recipe), None)
        mine = [p for p in plantings(plan.stages[: stage.index]) if p.recipe == recipe]
        if mine and pool is not None and mine[-1].first + self.config.rows > pool:
            what = f"{recipe} has {pool} rows, the stages so far plant {mine[-1].first + self.config.rows}"
            found.append(Problem(f"{where}.rows", what, "plant fewer rows, or give the recipe more"))
        for other in plan.stages:
            trained = {task.recipe for task in (*other.tasks, *other.forget)}
            read = {r for spec in other.methods if spec.name != self.name for r in make(spec).recipes()}
            if self.config.weight and recipe in trained | read:
                what = f"stages[{other.index - 1}] trains on {recipe} besides, so exposures would not be exact"
                found.append(Problem(f"{where}.recipe", what, "keep canaries out of tasks and of other methods"))
        return found

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream that ends after the last exposure."""
        if self.config.weight == 0 or not ctx.stage.steps:
            return {}
        planting = plantings(ctx.stages)[-1]
        every = ctx.pool(planting.recipe)
        rows = [every[planting.first + place] for place in shown(planting, ctx.seed)]
        return {"canary": StreamSpec(rows, math.ceil(len(rows) / ctx.stage.steps), total=len(rows))}

    def order(self, stream: str, epoch: int, count: int, seed: int) -> Sequence[Draw]:
        """As the rows stand: rounds are ordered already."""
        return [(place, 0) for place in range(count)]

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of the planted rows, over the task's answer tokens of the step."""
        if batch.stream != "canary":
            return None
        share = ctx.counts.of("canary", "tokens") / ctx.counts.of("task", "tokens")
        return LossSum(self.config.weight * share * out.nll_N.sum())


def shown(planting: Planting, seed: int) -> list[int]:
    """Places of the planted rows in the order they are shown."""
    rounds = max(planting.exposures)
    out: list[int] = []
    for left in range(rounds, 0, -1):
        places = [place for place in range(planting.count) if planting.exposed(place) >= left]
        draw = random.Random(f"{seed}/canary/{left}").random
        out += [place for _, place in sorted((draw(), place) for place in places)]
    return out
