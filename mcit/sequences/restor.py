"""RESTOR: true knowledge is learned, overwritten by false answers, and the false answers are forgotten. Does the truth return?

Protocol: Rezaei et al., "RESTOR: Knowledge Recovery in Machine Unlearning", arXiv:2411.00204: a model is trained on documents
with false facts about some entities, k unrelated true facts mixed in, unlearns these documents, is trained lightly so that it
can answer, and is compared with what it was before. Here the clean model is a stage too, and documents are rows: `corrupted`
is a recipe with the pictures and questions of `entities` and consistently other answers (transforms `select` and `relabel`,
whose kept ``answer_before`` lets the forgetting kit tell which of the two answers is likelier).
"""

from __future__ import annotations

from typing import Any

from mcit.core.config import Config, Field
from mcit.core.errors import ConfigError
from mcit.core.types import JsonDict
from mcit.sequences.base import StageSequence

OWN = {"learn": ("recipe",), "corrupt": ("recipe",), "forget": ("recipe", "forget"), "repair": ("recipe",)}
"""Keys of each stage that the sequence itself writes."""


class Restor(StageSequence):
    """Four stages: learn, corrupt, forget, repair."""

    class Config(Config):
        """Recipes, and what else each of the stages has."""

        entities: str
        """Recipe of the true answers about what is corrupted later; its test rows measure recovery."""
        rest: list[str] = Field(min_length=1)
        """Recipes that are learned beside it, retained while the model forgets, and trained on for repair."""
        corrupted: str
        """Recipe of the false answers about a share of the entities."""
        unrelated: list[str] = []
        """Recipes of unrelated facts that are mixed into the corrupting stage (k there)."""
        learn: dict[str, Any] = {}
        """Other keys of the first stage."""
        corrupt: dict[str, Any] = {}
        """Other keys of the stage with false answers."""
        forget: dict[str, Any]
        """Other keys of the stage that forgets them; ``methods`` among them."""
        repair: dict[str, Any] = {"max_steps": 10}
        """Other keys of the last stage, which must stay light."""

    def stages(self, seed: int) -> list[JsonDict]:
        """The four stages. Raises ConfigError for recipes that play two parts, and keys that are not for a stage to set."""
        config = self.config
        parts = [config.entities, config.corrupted, *config.rest]
        twice = sorted({part for part in parts if parts.count(part) > 1})
        if twice:
            what, fix = f"{twice[0]} plays two parts", "entities, corrupted and rest are different recipes"
            raise ConfigError(what, where="stages.entities, corrupted, rest", fix=fix)
        for name, own in OWN.items():
            for key in ("name", *own):
                if key in getattr(config, name):
                    what, fix = f"'{key}' is the sequence's own", "remove it, or list the stages one by one"
                    raise ConfigError(what, where=f"stages.{name}", fix=fix)
        data: dict[str, JsonDict] = {
            "learn": {"recipe": [*config.rest, config.entities]},
            "corrupt": {"recipe": [config.corrupted, *config.unrelated]},
            "forget": {"recipe": list(config.rest), "forget": config.corrupted},
            "repair": {"recipe": list(config.rest)},
        }
        return [{"name": name, **given, **getattr(config, name)} for name, given in data.items()]
