"""Where the time of a command goes: a clock that is in exactly one part at any time, and what each stage did meanwhile.

Nothing is measured unless a command turns it on with `profiled`: `timed` and `stepping` are empty blocks then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from mcit.core.types import JsonDict

STEP = ("data", "vision", "language forward", "backward", "methods", "penalties", "optimiser", "rest of the steps")
"""Parts that optimiser steps consist of."""
PARTS = ("start-up", "preparing", *STEP, "checkpoint", "probes", "evaluation", "report", "rest")
"""Every part, in the order in which reports show them."""
EVERY = 16
"""One step of so many is counted in FLOPs: counting slows a step down."""


class Counting(Protocol):
    """A block whose floating-point operations are counted."""

    flops: int

    def __enter__(self) -> Self:
        """Count from here on."""

    def __exit__(self, *error: Any) -> None:
        """Stop."""


@dataclass
class StageTimes:
    """What a command did for one stage; seconds are wall time, tokens attended positions over all ranks."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By part."""
    steps: int = 0
    tokens: int = 0
    counted_steps: int = 0
    counted_tokens: int = 0
    counted_seconds: float = 0.0
    """Of the steps that were counted, in the parts of `STEP`."""
    flops: int = 0
    """Of the counted steps, in this process."""
    peak_bytes: int | None = None
    """Most memory of this process, on its device or in host memory, while the stage trained."""


class Profile:
    """The clock of a command. Parts lie within each other; time belongs to the innermost."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._parts = ["start-up"]
        self._since = clock()
        self._stage = "start"
        self._in_steps = 0.0
        self._counted: int | None = None
        self.stages: dict[str, StageTimes] = {}
        self.wait: Callable[[], object] = lambda: None
        """Waits for the device, so that its work falls into the part that asked for it."""
        self.counting: Callable[[], Counting] | None = None

    @property
    def times(self) -> StageTimes:
        """Of the stage that the time belongs to now."""
        return self.stages.setdefault(self._stage, StageTimes())

    def at(self, stage: str) -> None:
        """What follows belongs to a stage, by its folder, or to ``base``."""
        self._charge()
        self._stage, self._parts[0] = stage, "rest"

    def enter(self, part: str) -> None:
        """A part begins within the one that goes on."""
        self._charge()
        self._parts.append(part)

    def leave(self) -> None:
        """It ends."""
        self._charge()
        self._parts.pop()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The time of this block, but for parts within it."""
        depth = len(self._parts)
        self.enter(name)
        try:
            yield
        finally:
            self._charge()
            del self._parts[depth:]  # an error may have left parts open

    @contextlib.contextmanager
    def stepping(self, number: int) -> Iterator[None]:
        """An optimiser step, counted in FLOPs if it is its turn."""
        self._in_steps, self._counted = self._step_seconds(), None
        with self.part("rest of the steps"):
            if self.counting is None or number % EVERY != 1:
                yield
                return
            with self.counting() as counted:
                yield
            self._counted = counted.flops

    def stepped(self, tokens: int) -> None:
        """The step went over so many tokens."""
        times = self.times
        times.steps += 1
        times.tokens += tokens
        if self._counted is not None:
            times.counted_steps += 1
            times.counted_tokens += tokens
            times.counted_seconds += self._step_seconds() - self._in_steps
            times.flops += self._counted

    def json(self) -> list[JsonDict]:
        """What every stage took so far."""
        self._charge()
        return [
            {"name": name, **vars(times), "seconds": {part: round(s, 4) for part, s in times.seconds.items()}}
            for name, times in self.stages.items()
        ]

    def _step_seconds(self) -> float:
        return sum(self.times.seconds.get(part, 0.0) for part in STEP)

    def _charge(self) -> None:
        self.wait()
        now = self._clock()
        seconds, part = self.times.seconds, self._parts[-1]
        seconds[part] = seconds.get(part, 0.0) + now - self._since
        self._since = now


_current: ContextVar[Profile | None] = ContextVar("profile", default=None)
_FREE: AbstractContextManager[None] = nullcontext()


def current() -> Profile | None:
    """The profile that is taken, if one is."""
    return _current.get()


@contextlib.contextmanager
def profiled(on: bool = True) -> Iterator[Profile | None]:
    """In this block a profile is taken, if it is `on`."""
    profile = Profile() if on else None
    token = _current.set(profile)
    try:
        yield profile
    finally:
        _current.reset(token)


def timed(part: str) -> AbstractContextManager[None]:
    """A block whose time belongs to a part."""
    profile = _current.get()
    return _FREE if profile is None else profile.part(part)


def stepping(number: int) -> AbstractContextManager[None]:
    """The block of an optimiser step; `number` counts from 0 in its stage."""
    profile = _current.get()
    return _FREE if profile is None else profile.stepping(number)


def stepped(tokens: int) -> None:
    """The step went over so many tokens."""
    profile = _current.get()
    if profile is not None:
        profile.stepped(tokens)


def belongs_to(stage: str) -> None:
    """Time from here on belongs to a stage, by its folder, or to ``base``."""
    profile = _current.get()
    if profile is not None:
        profile.at(stage)
