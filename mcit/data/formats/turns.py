"""The turns of a row, from the layouts that instruction data comes in.

``llava``: ``conversations`` of ``{from: human|gpt, value}``. ``sharegpt``: the same with the names that ShareGPT files use for
the two sides. ``messages``: OpenAI's ``{role, content}``, content a text or a list of text and picture parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mcit.core.types import Turn
from mcit.data.formats.element import RowError
from mcit.data.placeholder import PLACEHOLDER

Kind = Literal["llava", "sharegpt", "messages"]
Role = Literal["user", "assistant", "system"]


@dataclass(frozen=True)
class Layout:
    """How a layout names things."""

    lists: tuple[str, ...]
    """Keys that may hold the list of turns."""
    who: str
    what: str
    roles: Mapping[str, Role]

    @property
    def names(self) -> str:
        """What a turn may be from, for messages."""
        *first, last = (repr(name) for name in self.roles)
        return f"{', '.join(first)} and {last}"


_LLAVA: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
LAYOUTS: dict[Kind, Layout] = {
    "llava": Layout(("conversations",), "from", "value", _LLAVA),
    "sharegpt": Layout(
        ("conversations",),
        "from",
        "value",
        {
            **_LLAVA,
            "user": "user",
            "assistant": "assistant",
            "chatgpt": "assistant",
            "bard": "assistant",
            "model": "assistant",
        },
    ),
    "messages": Layout(
        ("messages", "conversations"),
        "role",
        "content",
        {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"},
    ),
}


def turns_of(value: Mapping[str, Any], kind: Kind, pictures: list[Any]) -> list[Turn]:
    """A row's turns: a system turn if there is one (or the row's own key ``system``), then questions and answers in turn.

    Pictures that turns name themselves are added to `pictures`. Raises RowError.
    """
    layout = LAYOUTS[kind]
    listed = next((value[key] for key in layout.lists if value.get(key)), None)
    if not isinstance(listed, list) or not listed:
        raise _no_turns(value, kind)
    beside = plain_text(value.get("system"))
    turns: list[Turn] = [Turn("system", beside)] if beside else []
    for number, message in enumerate(listed, start=1):
        name = message.get(layout.who) if isinstance(message, dict) else None
        role = layout.roles.get(name) if isinstance(name, str) else None
        if role is None:
            raise _unknown_role(number, name, message, kind)
        text = plain_text(message.get(layout.what), pictures if kind == "messages" else None)
        if role == "system":
            if number > 1:
                raise RowError(f"turn {number} is from '{name}'", "a system turn comes first, and once")
            if beside and text and text != beside:
                raise RowError("the row has a 'system' and another system turn", "keep one of the two")
            turns += [Turn("system", text)] if text and not beside else []  # an empty one says nothing
            continue
        asked = not turns or turns[-1].role != "user"
        if role != ("user" if asked else "assistant"):
            expected = next(key for key, side in layout.roles.items() if side == ("user" if asked else "assistant"))
            raise RowError(
                f"turn {number} is from '{name}', expected '{expected}'",
                f"begin with {next(iter(layout.roles))} and alternate",
            )
        if not text:
            what = "answer" if role == "assistant" else "question"
            raise RowError(f"turn {number} is an empty {what}", "write the text, or remove the row")
        turns.append(Turn(role, text))
    if not turns or turns[-1].role != "assistant":
        raise RowError("the last turn is not an answer", f"add the {list(layout.roles)[1]} turn")
    return turns


def plain_text(value: Any, pictures: list[Any] | None = None) -> str:
    """A turn's text without blanks around it; empty for what is none. Numbers count as their text.

    A list of parts is allowed where `pictures` is given, which gets the pictures that parts name.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        raise RowError(f"a turn is {str(value).lower()}, no text", 'write "yes", "no" or another text in quotes')
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise RowError(f"a turn is {value}", "write the text, or remove the row")
        return str(value)
    if isinstance(value, list) and pictures is not None:
        return "\n".join(part for item in value if (part := _part(item, pictures))).strip()
    if value is None:
        return ""
    raise RowError(f"a turn is of type {type(value).__name__}, no text", "write the text in quotes")


def _part(item: Any, pictures: list[Any]) -> str:
    """Text of one part; a picture is its placeholder."""
    kind = item.get("type") if isinstance(item, dict) else None
    if isinstance(item, str) or kind in ("text", "input_text", "output_text"):
        text = item if isinstance(item, str) else item.get("text")
        if not isinstance(text, str):
            raise RowError("a text part holds no text", "write {type: text, text: …}")
        return text.strip()
    if kind in ("image", "image_url", "input_image"):
        given = next((item[key] for key in ("image_url", "image", "path", "url") if item.get(key) is not None), None)
        given = given.get("url", given) if isinstance(given, dict) else given
        if given is not None:  # without one the picture stands in the row's own list
            pictures.append(given)
        return PLACEHOLDER
    what = f"a part is of type {kind!r}" if isinstance(item, dict) else f"a part is of type {type(item).__name__}"
    raise RowError(what, "text and image are supported; remove the row, or the part")


def with_system_in_front(turns: Sequence[Turn]) -> list[Turn]:
    """The system turn as the first lines of the first question, for models without a place for it."""
    if not turns or turns[0].role != "system":
        return list(turns)
    system, first, *rest = turns
    head, text = "", first.text
    while text.startswith(PLACEHOLDER):
        head, text = f"{head}{PLACEHOLDER}\n", text.removeprefix(PLACEHOLDER).lstrip()
    return [Turn("user", f"{head}{system.text}\n\n{text}"), *rest]


def _no_turns(value: Mapping[str, Any], kind: Kind) -> RowError:
    for other, layout in LAYOUTS.items():
        found = next((key for key in layout.lists if isinstance(value.get(key), list) and value[key]), None)
        if other != kind and found and found not in LAYOUTS[kind].lists:
            return RowError(
                f"the row has '{found}', its source is of kind {kind}", f"write kind: {other} for this source"
            )
    keys = ", ".join(repr(key) for key in list(value)[:8])
    missing = LAYOUTS[kind].lists[0]
    fix = f"add a {' and a '.join(list(LAYOUTS[kind].roles)[:2])} turn"
    if keys and missing not in value:
        pair = next(((q, a) for q, a in PAIRS if q in value and a in value), None)
        fix += f", or write fields: [{pair[0]}, {pair[1]}] for this source" if pair else ""
        return RowError(f"the row has no {missing}; its keys are {keys}", fix)
    return RowError(f"the row has no {missing}", fix)


PAIRS = (
    ("question", "answer"),
    ("question", "answers"),
    ("prompt", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)
"""Keys of question and answer that other files use."""


def _unknown_role(number: int, name: Any, message: Any, kind: Kind) -> RowError:
    layout = LAYOUTS[kind]
    what = f"turn {number} is from {name!r}"
    if isinstance(message, dict):
        for other, its in LAYOUTS.items():
            if other != kind and isinstance(message.get(its.who), str) and message[its.who] in its.roles:
                return RowError(f"turn {number} is from {message[its.who]!r}", f"write kind: {other} for this source")
    if name in ("tool", "function", "function_call", "observation"):
        return RowError(what, "tool calls are not supported; remove the row")
    return RowError(what, f"only {layout.names} are legal")
