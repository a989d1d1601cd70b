"""SCoLe: long streams of short stages in which a few concepts come back again and again.

Paper: Lesort et al., "Challenging Common Assumptions about Catastrophic Forgetting and Knowledge Accumulation", CoLLAs 2023,
arXiv:2207.04543: each task holds a few classes drawn at random from a fixed set, and a model is tested on all of them after
each task. Here a concept is a recipe: of a task, of a class or of a question type (transform `select`).

``imbalance`` e makes some concepts rarer: ``p_i ~ (1 - slope i)^e`` over concepts in an order drawn by the seed, the released
code's rule; a slope that makes a share negative is refused (0.05 does beyond 20 concepts). ``reduction`` divides the share
of a concept each time it came. ``replay: frequency`` lists, per stage, the rarest earlier concepts for the method
`frequency_replay`, by the released code's rule; replayed visits count as visits, as there.
"""

from __future__ import annotations

import random
from typing import Any, Literal

from mcit.core.config import Config, Field
from mcit.core.errors import ConfigError
from mcit.core.types import JsonDict
from mcit.sequences.base import StageSequence

RARE, KNOWN = (0.01, 0.1), 3
"""Shares of the stages between which a concept is replayed, the first excluded; and visits it must have had."""


class SCoLe(StageSequence):
    """So many stages of a few concepts each."""

    class Config(Config):
        """Settings of the stream."""

        concepts: list[str] = Field(min_length=2)
        """Recipes of the concepts."""
        stages: int = Field(100, ge=1)
        """Length of the stream."""
        per_stage: int = Field(2, ge=1)
        """Concepts of a stage, all different; 2 in the released code."""
        imbalance: float = Field(0.0, ge=0)
        """Exponent of the shares (entropy_decrease there); 0 draws all concepts alike."""
        slope: float = Field(0.05, ge=0)
        """How fast shares fall from concept to concept; 0.05 there, 0.01 with 100 classes."""
        reduction: float = Field(1.0, ge=1)
        """Divides a concept's share each time it came (prob_reduction there)."""
        replay: Literal["none", "frequency"] = "none"
        """Replay of rare concepts."""
        replay_rows: int = Field(200, ge=1)
        """Rows kept of a concept for replay; 200 there."""
        methods: list[dict[str, Any]] = []
        """Methods of every stage, in place of those in ``defaults``."""

    def stages(self, seed: int) -> list[JsonDict]:
        """One stage per draw. Raises ConfigError for shares that are not positive, or more concepts than there are."""
        config = self.config
        if config.per_stage > len(config.concepts):
            what = f"{config.per_stage} different concepts of {len(config.concepts)}"
            raise ConfigError(what, where="stages.per_stage", fix="list more concepts, or take fewer per stage")
        draw = random.Random(f"{seed}/scole")
        order = draw.sample(config.concepts, len(config.concepts))
        weights = dict(zip(order, shares(len(order), config.imbalance, config.slope), strict=True))
        visits: dict[str, int] = dict.fromkeys(config.concepts, 0)
        out: list[JsonDict] = []
        for number in range(1, config.stages + 1):
            chosen = _drawn(draw, weights, config.per_stage)
            replayed = rarest(visits, number - 1, chosen) if config.replay == "frequency" else []
            stage: JsonDict = {"name": f"visit-{number:04d}", "recipe": chosen if len(chosen) > 1 else chosen[0]}
            methods = list(config.methods)
            if replayed:
                seen = {concept: visits[concept] for concept in replayed}
                methods.append({"name": "frequency_replay", "visits": seen, "keep": config.replay_rows})
            if methods:
                stage["methods"] = methods
            out.append(stage)
            for concept in [*chosen, *replayed]:
                visits[concept] += 1
            for concept in chosen:
                weights[concept] /= config.reduction
        return out


def shares(count: int, exponent: float, slope: float) -> list[float]:
    """``(1 - slope i)^exponent``, normalised. Raises ConfigError if one is not positive."""
    if exponent and 1 - slope * (count - 1) <= 0:
        what = f"a slope of {slope} leaves nothing for the last of {count} concepts"
        raise ConfigError(what, where="stages.slope", fix=f"use less than {1 / (count - 1):.4f}")
    values = [(1 - slope * i) ** exponent for i in range(count)]
    return [value / sum(values) for value in values]


def rarest(visits: dict[str, int], stages: int, current: list[str]) -> list[str]:
    """At most as many earlier concepts as the stage has: known ones, rare ones, the rarest first."""
    low, high = RARE
    known = [c for c, n in visits.items() if c not in current and n >= KNOWN and low < n / max(1, stages) <= high]
    return sorted(known, key=lambda concept: (visits[concept], concept))[: len(current)]


def _drawn(draw: random.Random, weights: dict[str, float], count: int) -> list[str]:
    """So many different concepts by their shares."""
    left, out = dict(weights), []
    for _ in range(count):
        concept = draw.choices(list(left), list(left.values()))[0]
        out.append(concept)
        del left[concept]
    return out
