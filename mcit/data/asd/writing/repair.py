"""JSON as models write it: inside a code fence or prose, with comments, trailing commas or a missing comma."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)```", re.DOTALL)
_STRING = r'"(?:[^"\\]|\\.)*"'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING = re.compile(rf"({_STRING})|,(?=\s*[\]}}])", re.DOTALL)
_MOST_COMMAS = 20
_START = re.compile(r'\{(?=\s*["}]|\s*$)|\[(?=\s*(?:["{\[\]\d-]|true\b|false\b|null\b|$))')
"""A bracket that JSON may begin with; one in prose (``[JSON below]``) is followed by something else."""


def read_lenient(text: str) -> Any:
    """The first JSON object or array in a reply. Raises ValueError when there is none, even after mending."""
    fenced = _FENCE.search(text)
    body = fenced.group(1) if fenced else text
    body = _TRAILING.sub(lambda m: m.group(1) or "", _COMMENT.sub(lambda m: m.group(1) or "", body))
    start = _START.search(body)
    if start is None:
        raise ValueError("no JSON object or array")
    body = body[start.start() :]
    for _ in range(_MOST_COMMAS):
        try:
            value, _ = json.JSONDecoder().raw_decode(body)
            return value
        except json.JSONDecodeError as error:
            if error.msg != "Expecting ',' delimiter" or body[error.pos : error.pos + 1] not in ('"', "{", "["):
                raise ValueError(error.msg) from None
            body = f"{body[: error.pos]},{body[error.pos :]}"
        except RecursionError:
            raise ValueError("nested too deeply") from None
    raise ValueError("too many commas are missing")
