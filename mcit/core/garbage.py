"""How often Python looks for garbage that refers to itself: seldom while a command starts, as usual when it computes.

Imports and a plan make some hundred thousand objects that stay; Python would look through them again and again, which was a
third of the time of `mcit plan`, the search at its end included. Objects that nothing refers to are freed at once either way.
"""

from __future__ import annotations

import gc

_SELDOM = 500_000
"""New objects that wait until they are looked through; some 50 MB if all of them were garbage."""
_before: tuple[int, int, int] | None = None


def seldom() -> None:
    """For a process that is one command and has just begun."""
    global _before
    if _before is None:
        _before = gc.get_threshold()
        gc.set_threshold(_SELDOM, *_before[1:])


def as_usual() -> None:
    """Undo `seldom`, if it was called; what is there now stays to the end and is not looked through any more."""
    global _before
    if _before is not None:
        gc.freeze()
        gc.set_threshold(*_before)
        _before = None


def never() -> None:
    """For a process that has nothing left to do but end: all of it is given back then."""
    gc.disable()
    gc.freeze()
