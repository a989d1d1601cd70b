"""What takes time right now, told to whoever shows it: planning, loading and writing have no steps to count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("doing", default=None)


def doing(text: str) -> None:
    """Say what begins now, in a few words; nothing without a listener."""
    listener = _listener.get()
    if listener is not None:
        listener(text)


@contextlib.contextmanager
def told_to(listener: Callable[[str], None]) -> Iterator[None]:
    """In this block `doing` calls `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
