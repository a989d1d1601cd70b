"""A chat-completions server on this machine that replies what a function says, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, str]
"""Status and the text of the message (of the error, when the status is not 200)."""


class Asked:
    """Requests in the order they came."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def text(self, number: int) -> str:
        """The user's message of a request, without pictures."""
        content = self.bodies[number]["messages"][1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]


@contextlib.contextmanager
def chat_server(reply: Callable[[str, int], Reply | str]) -> Iterator[Asked]:
    """Serve on a free port of the loopback; `reply` gets the user's message and the number of the request from 0."""
    asked, lock = Asked(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked.bodies)
                asked.bodies.append(body)
                asked.headers.append(dict(self.headers))
            found = reply(asked.text(number), number)
            status, text = found if isinstance(found, tuple) else (200, found)
            data = json.dumps({"choices": [{"message": {"content": text}}]}) if status == 200 else text
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    asked.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def good_reply(text: str, number: int) -> str:
    """What a careful model would reply: the form at the prompt's end filled in, for one question or several."""
    form = json.loads(text.partition("exactly in this form:\n")[2].partition("\n\nAn earlier reply")[0])
    golds = re.findall(r"^(?:Correct answer(?: \d+)?|Class|Region \d+): (.*)$", text, re.MULTILINE)
    items = form if isinstance(form, list) else [form]
    for item, gold in zip(items, golds, strict=True):
        if "distractor_option" in item:
            item["distractor_option"] = "plainly wrong"
        if "distractor_options" in item:
            item["distractor_options"] = ["first wrong", "second mistake", "third error"]
        for key in ("explanation", "description"):
            if key in item:
                long = 30 if "about 50 words" in text else 12
                item[key] = f"The right one is {gold}, as " + " ".join(["seen"] * long) + "."
    return json.dumps(items if isinstance(form, list) else items[0])
