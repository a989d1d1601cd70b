"""Frequency replay: rows of earlier concepts that come back too rarely.

Paper: Lesort et al., "Challenging Common Assumptions about Catastrophic Forgetting and Knowledge Accumulation", CoLLAs 2023,
arXiv:2207.04543, section on frequency replay; the sizes are those of the released code.
Hooks: streams (the kept rows), loss_term (their token loss).
State: none: what is kept of a concept follows from the seed of its recipe and how often it was visited.

A concept keeps `keep` rows of its first visit; each later visit puts ``max(keep // (visits + 1), 10)`` others in their place,
of rows drawn alike or, with ``policy: age_weighted``, of those with least relevance * exp(-age / tau), ages being in visits.
Which concepts are replayed in a stage is for the sequence to say (`scole`). They come on top of the task's rows.
"""

import random
from collections.abc import Mapping

from mcit.core.ageing import age_weight, lightest
from mcit.core.config import Field
from mcit.core.interfaces import DataContext, StepContext
from mcit.core.types import Batch, Claims, LossSum, ModelOutput, StreamSpec
from mcit.methods.base import Method
from mcit.methods.formulas.memory import MemoryConfig

LEAST = 10
"""Rows that a visit replaces at least."""


class FrequencyReplay(Method):
    """Token loss on the kept rows of the listed concepts."""

    name = "frequency_replay"
    claims = Claims(streams=frozenset({"replay"}))

    class Config(MemoryConfig):
        """What is replayed."""

        weight: float = Field(1.0, ge=0)
        """Factor of the replayed rows' loss; 0 opens no stream."""
        visits: dict[str, int] = {}
        """Recipes of the concepts and how often each was visited before; without any nothing is replayed."""
        keep: int = Field(200, ge=1)
        """Rows kept of a concept; 200 in the released code."""
        per_step: int = Field(4, ge=1)
        """Replayed rows per optimiser step."""

    def recipes(self) -> tuple[str, ...]:
        """The concepts."""
        return tuple(self.config.visits) if self.config.weight else ()

    def streams(self, ctx: DataContext) -> Mapping[str, StreamSpec]:
        """One stream over the kept rows of all listed concepts."""
        rows = []
        for recipe in self.recipes():
            own = ctx.pool(recipe)
            tau = self.config.tau if self.config.policy == "age_weighted" else None
            places = kept(len(own), self.config.visits[recipe], self.config.keep, seed=recipe, tau=tau)
            rows += [own[place] for place in places]
        rows = ctx.without_forgotten(rows) if rows else rows
        return {"replay": StreamSpec(rows, self.config.per_step)} if rows else {}

    def loss_term(self, out: ModelOutput, batch: Batch, ctx: StepContext) -> LossSum | None:
        """Token loss of the replayed rows."""
        return LossSum(self.config.weight * out.nll_N.sum(), per="tokens") if batch.stream == "replay" else None


def refreshed(visits: int, keep: int) -> int:
    """Rows that the visit after so many earlier ones replaces."""
    return min(keep, max(keep // (visits + 1), LEAST))


def kept(count: int, visits: int, keep: int, *, seed: str, tau: float | None = None) -> list[int]:
    """Sorted places of the rows kept of a concept with `count` rows after so many visits; none before the first.

    With `tau`, in visits, those of least weight make room; without it they are drawn.
    """
    draw = random.Random(f"{seed}/frequency_replay")
    held = draw.sample(range(count), min(keep, count)) if visits else []
    came = dict.fromkeys(held, 0)
    for visit in range(1, visits):
        others = sorted(set(range(count)) - set(held))
        new = draw.sample(others, min(refreshed(visit, keep), len(others)))
        if tau is None:
            held = [*draw.sample(held, len(held) - len(new)), *new]
            continue
        relevance = {place: random.Random(f"{seed}/relevance/{came[place]}/{place}").random() for place in held}
        weights = [age_weight(visit - came[place], relevance=relevance[place], tau=tau) for place in held]
        gone = set(lightest(weights, len(new)))
        held = [place for rank, place in enumerate(held) if rank not in gone] + new
        came |= dict.fromkeys(new, visit)
    return sorted(held)
