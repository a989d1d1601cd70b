"""``train.log`` of a run: what was shown, as plain lines with their time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from mcit.cli.live import describe
from mcit.core.errors import printable
from mcit.core.interfaces import Reporter
from mcit.core.types import Progress


class Logged:
    """A reporter that shows through another one and writes to a file once it is known; a file that fails is told once.

    What the other one lacks beside `line` and `progress` (`doing`, `watch`, `close`) is left out.
    """

    EVERY_S = 30.0
    """Progress goes to the file at most so often, and at the end of each phase."""

    def __init__(self, shown: Reporter) -> None:
        self._shown, self._last = shown, 0.0
        self._path: Path | None = None
        self._waiting: list[str] = []

    def open(self, path: Path) -> None:
        """Append to `path` from now on, what was told before included."""
        self._path, lines = path, self._waiting
        self._waiting = []
        for line in lines:
            self._append(line)

    def watch(self, run: Path) -> None:
        """Hand the run to a view that shows its matrix."""
        watch = getattr(self._shown, "watch", None)
        if watch:
            watch(run)

    def line(self, text: str) -> None:
        """Show and write."""
        self._shown.line(text)
        self._write(text)

    def doing(self, text: str) -> None:
        """Show what begins now."""
        doing = getattr(self._shown, "doing", None)
        if doing:
            doing(text)
        self._write(text)

    def progress(self, progress: Progress) -> None:
        """Show every one, write some."""
        self._shown.progress(progress)
        now = time.monotonic()
        if now - self._last >= self.EVERY_S or progress.done >= progress.total:
            self._last = now
            self._write(describe(progress))

    def close(self) -> None:
        """End the view."""
        close = getattr(self._shown, "close", None)
        if close:
            close()

    def _write(self, text: str) -> None:
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {printable(text)}"
        if self._path is None:
            self._waiting.append(line)
        else:
            self._append(line)

    def _append(self, line: str) -> None:
        if self._path is None:
            return
        try:
            with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            path, self._path = self._path, None
            self._shown.line(f"note: {path} is not written any more: {error.strerror}")
