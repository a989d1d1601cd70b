"""Which canary rows are planted in which stage, and how often: a function of the stages alone, for method, probe and card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcit.core.types import JsonDict, Stage

METHOD = "canary"
"""Name of the method that plants them."""
ROWS = 64
"""Rows planted in a stage where the config says nothing."""


@dataclass(frozen=True)
class Planting:
    """Rows of a recipe that one stage plants."""

    stage: Stage
    recipe: str
    first: int
    """Place of the first of them in the recipe."""
    count: int
    exposures: tuple[int, ...]
    """In turn, begun one further in each round where there is an even number of them: kinds of rows alternate too."""

    def exposed(self, place: int) -> int:
        """How often the row at a place among them is shown."""
        several = len(self.exposures)
        return self.exposures[(place + (place // several if several % 2 == 0 else 0)) % several]


def plantings(stages: Sequence[Stage]) -> list[Planting]:
    """What these first stages of a run plant; no row is planted in two of them."""
    out: list[Planting] = []
    used: dict[str, int] = {}
    for stage in stages:
        for spec in stage.methods:
            if spec.name == METHOD and spec.config.weight:
                recipe, count = spec.config.recipe, spec.config.rows
                first = used.get(recipe, 0)
                used[recipe] = first + count
                out.append(Planting(stage, recipe, first, count, tuple(spec.config.exposures)))
    return out


def planted(stages: Sequence[JsonDict]) -> int:
    """Rows that some stages plant, by their resolved configs; defaults are those of `rows` and `weight`."""
    methods = [method for stage in stages for method in stage["methods"] if method["name"] == METHOD]
    return sum(method.get("rows", ROWS) for method in methods if method.get("weight", 1.0))
