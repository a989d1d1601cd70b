"""Whether an answer has the form that a task asks for, whatever it says.

Accuracy alone cannot tell a model that forgot the answer from one that answers in the form of another task. An answer
is format-valid if it fits the row's style:

========  ==============================================================================================
letter    one of the offered letters in upper case, a full stop may follow
word      one word (no blank inside), a full stop may follow; no box
name      one to three words; no yes/no, no box, no sentence, no lone letter
phrase    one to five words; no yes/no, no box, no sentence
yes_no    yes or no in any case, a full stop may follow
box       exactly four numbers with commas between them, in square brackets or bare
text      anything that is not empty
========  ==============================================================================================

A sentence has more than one line, a full stop, question mark or exclamation mark before its end or after more than one
word, or one of the verbs that answers in sentences are built with (is, are, was, were, has, have).
Styles of diversified rows count as the style they resemble: yn, mcq, short, brief, detail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mcit.core.config import suggestion
from mcit.core.errors import ConfigError
from mcit.evals.parse import offered_letters

_BOX = re.compile(r"^(\[)?\s*{n}(?:\s*,\s*{n}){{3}}\s*(?(1)\])$".format(n=r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"))
_INNER_STOP = re.compile(r"[.!?]\s+\S")
_VERBS = frozenset({"is", "are", "was", "were", "has", "have"})
ALIASES = {"yn": "yes_no", "mcq": "letter", "short": "phrase", "brief": "text", "detail": "text", "": "text"}
"""Styles of diversified rows, and none at all, to the style they resemble."""


def format_valid(text: str, style: str, meta: Mapping[str, Any] | None = None) -> bool:
    """Whether `text` has the form of `style`; ``choices`` or ``question`` of `meta` say which letters are offered.

    Raises ConfigError for a style that does not exist.
    """
    style = ALIASES.get(style, style)
    if style not in _RULES:
        raise ConfigError(f"there is no answer style '{style}'", where="style", fix=suggestion(style, _RULES))
    text = text.strip()
    return bool(text) and _RULES[style](text, meta or {})


def _letter(text: str, meta: Mapping[str, Any]) -> bool:
    return len(text.removesuffix(".")) == 1 and text[0] in offered_letters(meta)


def _word(text: str, _: Mapping[str, Any]) -> bool:
    return len(text.split()) == 1 and any(c.isalnum() for c in text) and not _BOX.match(text)


def _name(text: str, _: Mapping[str, Any]) -> bool:
    return _short(text, most=3) and len(text.removesuffix(".")) > 1


def _phrase(text: str, _: Mapping[str, Any]) -> bool:
    return _short(text, most=5)


def _short(text: str, *, most: int) -> bool:
    words = text.split()
    return (
        len(words) <= most
        and any(c.isalnum() for c in text)
        and not _yes_no(text, {})
        and not _BOX.match(text)
        and not _sentence(text, words)
    )


def _sentence(text: str, words: list[str]) -> bool:
    ends = text[-1] in ".!?" and len(words) > 1
    return ends or "\n" in text or bool(_INNER_STOP.search(text)) or any(w.lower() in _VERBS for w in words)


def _yes_no(text: str, _: Mapping[str, Any]) -> bool:
    return text.removesuffix(".").lower() in ("yes", "no")


def _box(text: str, _: Mapping[str, Any]) -> bool:
    return _BOX.match(text) is not None


def _text(text: str, _: Mapping[str, Any]) -> bool:
    return True


_RULES: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "letter": _letter,
    "word": _word,
    "name": _name,
    "phrase": _phrase,
    "yes_no": _yes_no,
    "box": _box,
    "text": _text,
}
STYLES = frozenset(_RULES) | frozenset(ALIASES)
"""Styles that a task or a row may have; empty is any text."""
VERSION = 1
"""Goes up when a rule changes; scores of another version are computed again."""


def style_of(gold: Mapping[str, Any], style: str) -> str:
    """A row's own style, if it has one that is known, else that of its task."""
    own = gold.get("style")
    return own if own and own in STYLES else style
