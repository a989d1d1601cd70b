"""The page of a run over HTTP on this machine alone, made anew when the run has changed, reloaded by the browser itself."""

from __future__ import annotations

import html
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mcit.core.errors import ConfigError, McitError
from mcit.report.page.html import page_text
from mcit.runs.layout import RunLayout

HOST = "127.0.0.1"
RELOAD_S = 15
_SOON_S = 3
_NAMES = frozenset({HOST, "localhost"})


class Pages:
    """The text of a run's page, kept until a stage or a score is new."""

    def __init__(self, run: Path) -> None:
        self._run, self._lock = run, threading.Lock()
        self._text, self._state = "", -1.0

    def text(self) -> str:
        """The page now. Raises McitError where the run cannot be read, as while a file is being written."""
        with self._lock:
            state = _newest(RunLayout(self._run))
            if state != self._state or not self._text:
                self._text = page_text([self._run])
                self._state = state
            return self._text


def _newest(layout: RunLayout) -> float:
    """When the run changed last: its diary gets a line with every stage and every score."""
    try:
        return layout.ledger.stat().st_mtime
    except OSError:
        return 0.0


def server(run: Path, port: int) -> ThreadingHTTPServer:
    """A server that is bound and not yet running; port 0 takes a free one. Raises ConfigError for a port in use."""
    pages = Pages(run)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The page at ``/``, and nothing else."""
            name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if name not in _NAMES:  # a page elsewhere that lets its own name lead here must not read the run
                self._answer(403, "This server answers 127.0.0.1 and localhost only.")
            elif self.path.partition("?")[0] != "/":
                self._answer(404, "There is one page here: /")
            else:
                try:
                    self._answer(200, pages.text(), again=RELOAD_S)
                except McitError as error:
                    note = f"<!doctype html><title>mcit</title><pre>{html.escape(str(error))}</pre><p>Trying again."
                    self._answer(503, note, again=_SOON_S)

        def _answer(self, code: int, text: str, *, again: int | None = None) -> None:
            body = text.encode("utf-8", "backslashreplace")
            self.send_response(code)
            self.send_header("Content-Type", "text/html; charset=utf-8" if again else "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            if again:
                self.send_header("Refresh", str(again))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal may show a run."""

    try:
        found = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        what = f"cannot be listened on: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(
            what, where=f"--port {port}", fix="give another one; --port 0 takes any that is free"
        ) from None
    found.daemon_threads = True
    return found
