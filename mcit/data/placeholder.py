"""Where a picture stands in the text of a row."""

from __future__ import annotations

PLACEHOLDER = "<image>"
"""What a row's text holds where an image stands; a model's own token may differ."""


def front_placeholder(text: str) -> str:
    """What the LLaVA trainer does to a turn with ``<image>``: all of them away, one with a line break in front."""
    return f"{PLACEHOLDER}\n{text.replace(PLACEHOLDER, '').strip()}" if PLACEHOLDER in text else text
