"""Whether the scorer and the answer style that a recipe names exist; neither is imported."""

from __future__ import annotations

from mcit.core import lookup
from mcit.core.config import suggestion
from mcit.core.errors import Problem
from mcit.evals.style import STYLES


def unknown_scorer(scorer: str, recipe: str) -> list[Problem]:
    """The problem of a recipe whose scorer does not exist."""
    found = lookup.missing("evals.scorers", scorer, where=f"{recipe}: eval.scorer")
    return [found] if found else []


def unknown_style(style: str, recipe: str) -> list[Problem]:
    """The problem of a recipe whose answer style does not exist."""
    if not style or style in STYLES:
        return []
    return [Problem(f"{recipe}: eval.style", f"there is no answer style '{style}'", suggestion(style, STYLES))]
