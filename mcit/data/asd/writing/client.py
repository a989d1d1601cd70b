"""Any endpoint that speaks OpenAI's chat completions, by the standard library alone; nothing is sent unless a URL is given."""

from __future__ import annotations

import base64
import http.client
import json
import mimetypes
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, DataError
from mcit.data.asd.writing.prompts import Prompt

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_SHOWN = 200


@dataclass(frozen=True)
class OpenAiBackend:
    """One request per prompt, at temperature 0."""

    base_url: str
    """Up to and including ``/v1``; ``/chat/completions`` is added."""
    model: str
    key: str = ""
    """Sent as a bearer token when not empty; never written anywhere."""
    seed: int = 0
    max_tokens: int = 512
    timeout: float = 120
    """Seconds to wait for a reply."""
    tries: int = 4
    """Requests before an overloaded or failing server is given up."""
    pause: float = 1.0
    """Seconds before the second request; doubled each time."""
    sleep: Callable[[float], None] = time.sleep
    name: str = "openai"
    batch: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for an address that is not http or https."""
        if urllib.parse.urlsplit(self.base_url).scheme not in ("http", "https"):
            raise ConfigError(
                f"'{self.base_url}' is no http or https address", where="--base-url", fix="give http://host:port/v1"
            )

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """A reply per prompt.

        Raises DataError when the server stays away or keeps failing, ConfigError when it refuses the request.
        """
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> str:
        url = self.base_url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = json.dumps(self._body(prompt)).encode()
        problem = ""
        for number in range(self.tries):
            if number:
                self.sleep(self.pause * 2 ** (number - 1))
            request = urllib.request.Request(url, data, headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return _content(json.load(reply), url)
            except urllib.error.HTTPError as error:
                text = error.read(_SHOWN).decode("utf-8", "replace").strip()
                problem = f"the server answers {error.code} {error.reason}" + (f": {text}" if text else "")
                if error.code not in _AGAIN:
                    fix = "check the address, the model's name and the key"
                    raise ConfigError(problem, where=url, fix=fix) from None
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                problem = f"no usable reply ({error or type(error).__name__})"
        raise DataError(
            f"{problem} ({self.tries} tries)",
            where=url,
            fix="start the same command again later: what is written stays",
        )

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(Path(path))}} for path in prompt.images
        ]
        content.append({"type": "text", "text": prompt.text})
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": content if prompt.images else prompt.text},
            ],
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }


def _content(value: Any, url: str) -> str:
    try:
        text = value["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ConfigError(
            "the reply is no chat completion", where=url, fix="give the address of an OpenAI-compatible server"
        ) from None
    return text if isinstance(text, str) else ""


def _data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
