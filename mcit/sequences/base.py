"""The contract of a sequence: settings and a seed in, the stages of a run out.

In a config ``stages: {generate: <name>, …}`` names a file of this package, or code from elsewhere. The stages it makes are
ordinary ones: ``defaults`` lie under them, every check applies, `mcit plan` shows them, and a run keeps the expanded list.
Needs no torch.
"""

from __future__ import annotations

from typing import Any

from mcit.core.config import Config as BaseConfig
from mcit.core.types import JsonDict


class StageSequence:
    """Makes the stages of a run."""

    class Config(BaseConfig):
        """Typed settings; unknown keys are refused."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def stages(self, seed: int) -> list[JsonDict]:
        """Each stage as it would stand in a config, in order; a function of settings and seed alone.

        Raises ConfigError for settings from which no sequence can be made.
        """
        raise NotImplementedError
