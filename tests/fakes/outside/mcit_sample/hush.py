"""A filter with settings and state: silent where the prompt's state is near to what a method left behind."""

import json

from mcit.core.config import Field
from mcit.evals.filters.base import Filter, FilterConfig


class Hush(Filter):
    """Answers of hushed rows become one word; which rows is decided by their prompt states and the method's file."""

    reads = ("replay",)
    version = 2

    class Config(FilterConfig):
        """Settings of the filter."""

        word: str = "hush"
        """The answer of hushed rows."""
        above: float = Field(-1e9)
        """Mean state from which a row is hushed."""

    def prepare(self, ctx):
        """Mean state per row; nothing is hushed before a method kept anything."""
        kept = json.loads((ctx.state["replay"] / "state.json").read_text()) if "replay" in ctx.state else None
        means = ctx.states().mean(1).tolist() if kept else [float("-inf")] * len(ctx.rows)
        self._hushed = {row.id for row, mean in zip(ctx.rows, means, strict=True) if mean > self.config.above}

    def text(self, answer, row):
        """The word for hushed rows."""
        return self.config.word if row.id in self._hushed else answer
