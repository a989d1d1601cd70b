"""Keep the first line of an answer that is not empty, without the white space around it."""

from __future__ import annotations

from mcit.core.types import Row
from mcit.evals.filters.base import Filter


class Strip(Filter):
    """First line only."""

    def text(self, answer: str, row: Row) -> str:
        """The first line with anything on it; an empty answer stays empty."""
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return lines[0] if lines else ""
