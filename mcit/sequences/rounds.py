"""Every recipe again and again: rounds over all of them, each round in an order of its own.

A task that comes back shows how much of it was lost in between and how fast it returns; the order within a round is drawn
by the run's seed, so that runs with several seeds are runs with several orders.
"""

from __future__ import annotations

import random

from mcit.core.config import Config as BaseConfig
from mcit.core.config import Field
from mcit.core.types import JsonDict
from mcit.sequences.base import StageSequence


class Rounds(StageSequence):
    """``len(recipes)`` times `rounds` stages."""

    class Config(BaseConfig):
        """Settings of the sequence."""

        recipes: list[str] = Field(min_length=1)
        """Recipes of the stages."""
        rounds: int = Field(1, ge=1)
        """How often each recipe comes."""
        shuffle: bool = True
        """Draw the order of each round by the run's seed; else the listed order."""

    def stages(self, seed: int) -> list[JsonDict]:
        """One stage per recipe and round."""
        out: list[JsonDict] = []
        for number in range(self.config.rounds):
            order = list(self.config.recipes)
            if self.config.shuffle:
                random.Random(f"{seed}/rounds/{number}").shuffle(order)
            out += [{"recipe": recipe} for recipe in order]
        return out
