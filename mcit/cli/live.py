"""The live view on a terminal: the matrix as it fills, and one line that always says what happens now."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mcit.core.errors import printable
from mcit.core.types import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mcit.report.grid import Grid

_BAR = 20


class Live:
    """A reporter that draws four times a second. A bar is shown while its steps go on, and gives way to what comes next."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live as Display

        self._console = console or Console(stderr=True)
        self._clock = clock
        self._progress: Progress | None = None
        self._doing, self._since = "starting", clock()
        self._grid: Grid | None = None
        self._display = Display(get_renderable=self.render, console=self._console, transient=True, refresh_per_second=4)
        self._display.start()

    def line(self, text: str) -> None:
        """Print above the view."""
        self._console.print(printable(text), highlight=False, markup=False)
        self.fill()

    def doing(self, text: str) -> None:
        """Something without steps begins: it takes the place of the bar."""
        self._progress, self._doing, self._since = None, text, self._clock()

    def progress(self, progress: Progress) -> None:
        """Move the bar; when its last step is done, say so until something else begins."""
        if progress.done >= progress.total:
            self.doing(f"{_title(progress)} done, {progress.done} of {progress.total}")
        else:
            self._progress = progress

    def watch(self, run: Path) -> None:
        """From now on show the matrix of this run."""
        from mcit.report.grid import Grid

        self._grid = Grid(run)
        self.fill()

    def fill(self) -> None:
        """Take in new scores."""
        if self._grid is not None:
            self._grid.update()

    def render(self) -> RenderableType:
        """The view now, no line wider than the terminal."""
        from rich.console import Group
        from rich.text import Text

        width = self._console.width
        lines = self._grid.lines(width) if self._grid else []
        if self._progress is None:
            lines.append(f"{self._doing} … {_time(self._clock() - self._since)}")
        else:
            lines += _bar(self._progress)
        return Group(*(Text(printable(line)[:width], no_wrap=True) for line in lines))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._display.stop()


def _title(progress: Progress) -> str:
    return f"stage {progress.stage} of {progress.stages} {progress.name} {progress.phase}"


def _bar(progress: Progress) -> list[str]:
    """The bar, and below it speed and time left."""
    full = _BAR * progress.done // progress.total
    bar = "━" * full + "╌" * (_BAR - full)
    return [f"{_title(progress)} {bar} {progress.done}/{progress.total}", f"  {numbers(progress)}".rstrip()]


def describe(progress: Progress) -> str:
    """One line of progress."""
    return f"{_title(progress)} {progress.done}/{progress.total} {numbers(progress)}".rstrip()


def numbers(progress: Progress) -> str:
    """Loss, speed and time left, as far as they are known."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.left_stage_s is not None:
        parts.append(f"stage left {_time(progress.left_stage_s)}")
    if progress.left_total_s is not None:
        parts.append(f"all left {_time(progress.left_total_s)}")
    return "  ".join(parts)


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
