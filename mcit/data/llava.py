"""LLaVA and CoIN files -> rows: a JSON array or one JSON object per line.

Training rows hold ``conversations``; CoIN test rows hold ``question_id, text, answer`` instead; a row of ``text`` alone is
plain text without a conversation. Reading never stops at a bad row: every problem of a file comes back in one list, each
with file, line and id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mcit.core.errors import DataError, Problem
from mcit.core.files import canonical_json
from mcit.core.types import Row, Turn

PLACEHOLDER = "<image>"
"""What a row's text holds where an image stands; a model's own token may differ."""
_ROLES = {"human": "user", "gpt": "assistant"}
_ROW_START = re.compile(r'\{\s*"(?:id|question_id|image|conversations|text|task|style|source|meta)"\s*:')
_BLANK = re.compile(r"[ \t\r\n]*")


class Loaded(NamedTuple):
    """Good rows in the file's order, and a problem for each bad one."""

    rows: list[Row]
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class _Item:
    """A decoded element of a file, or what is wrong with the text there."""

    line: int
    value: Any
    problem: str = ""


def read_llava(
    path: Path | str,
    *,
    task: str,
    image_root: Path | str = "",
    label: str | None = None,
    style: str = "",
    placeholders: Literal["keep", "front"] = "keep",
    fields: tuple[str, str] | None = None,
) -> Loaded:
    """Read every row of a file.

    `label` replaces the path in messages and in `Row.source`; `style` is for rows that name none; `placeholders: front`
    moves a turn's ``<image>`` to its front as the LLaVA trainer does; `fields` are the keys of question and answer in
    files that hold one turn each under names of their own. Raises DataError for a file that
    cannot be read, and for nothing else.
    """
    path = Path(path)
    items = _items(_text(path))
    pairs = [(item.line, item.value if not item.problem else _Bad(item.problem)) for item in items]
    if fields is not None:
        pairs = [(line, value if isinstance(value, _Bad) else _pair(value, *fields)) for line, value in pairs]
    return read_values(
        pairs, task=task, image_root=image_root, label=label or str(path), style=style, placeholders=placeholders
    )


@dataclass(frozen=True, slots=True)
class _Bad:
    what: str


def _pair(value: Any, question: str, answer: str) -> Any:
    """A row of a file with other key names as a row of one turn each; the other keys stay."""
    if not isinstance(value, dict):
        return value
    absent = [key for key in (question, answer) if not isinstance(value.get(key), str)]
    if absent:
        return _Bad(f"key '{absent[0]}' is missing or no text")
    turns = [{"from": "human", "value": value[question]}, {"from": "gpt", "value": value[answer]}]
    return {**{k: v for k, v in value.items() if k not in (question, answer)}, "conversations": turns}


def read_values(
    items: Sequence[tuple[int, Any]],
    *,
    task: str,
    label: str,
    image_root: Path | str = "",
    style: str = "",
    placeholders: Literal["keep", "front"] = "keep",
) -> Loaded:
    """Like `read_llava`, for decoded values with their line numbers."""
    rows: list[Row] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for index, (line, value) in enumerate(items, start=1):
        if isinstance(value, _Bad):
            problems.append(Problem(f"{label}:{line}", value.what, "mend the JSON"))
            continue
        identity = _identity(value, index)
        where = f"{label}:{line}:{identity}"
        try:
            row = _row(value, identity, f"{label}:{line}", task, style, str(image_root), placeholders)
        except _RowError as error:
            problems.append(Problem(where, error.what, error.fix))
            continue
        if identity in first:
            problems.append(
                Problem(where, f"id '{identity}' is already used at line {first[identity]}", "give each row its own id")
            )
            continue
        first[identity] = line
        rows.append(row)
    if not items:
        problems.append(Problem(label, "holds no rows", "check the file"))
    return Loaded(rows, problems)


def front_placeholder(text: str) -> str:
    """What the LLaVA trainer does to a turn with ``<image>``: all of them away, one with a line break in front."""
    return f"{PLACEHOLDER}\n{text.replace(PLACEHOLDER, '').strip()}" if PLACEHOLDER in text else text


def row_to_json(row: Row, **extra: Any) -> dict[str, Any]:
    """A row as it stands in a built data folder; its image root is not part of it."""
    return {
        "id": row.id,
        "images": list(row.images),
        "turns": [{"role": turn.role, "text": turn.text} for turn in row.turns],
        "task": row.task,
        "source": row.source,
        "style": row.style,
        "meta": dict(row.meta),
        **extra,
    }


def row_from_json(value: Mapping[str, Any], *, root: str = "") -> Row:
    """The inverse of `row_to_json`."""
    return Row(
        id=value["id"],
        images=tuple(value["images"]),
        turns=tuple(Turn(turn["role"], turn["text"]) for turn in value["turns"]),
        task=value["task"],
        source=value["source"],
        style=value["style"],
        meta=value["meta"],
        root=root,
    )


# ---- one row --------------------------------------------------------------------------------------------------------
class _RowError(Exception):
    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def _identity(value: Any, index: int) -> str:
    """The row's id; its number in the file where it has none."""
    if isinstance(value, dict):
        for key in ("id", "question_id"):
            if isinstance(value.get(key), (str, int)) and str(value[key]).strip():
                return str(value[key])
    return f"row-{index}"


def _row(
    value: Any, identity: str, source: str, task: str, style: str, root: str, placeholders: Literal["keep", "front"]
) -> Row:
    if not isinstance(value, dict):
        raise _RowError(f"expected an object, found {type(value).__name__}", "write one object per row")
    images = _images(value.get("image"))
    turns = _turns(value, images)
    if placeholders == "front":
        turns = [Turn(turn.role, front_placeholder(turn.text)) if turn.role == "user" else turn for turn in turns]
    _check_placeholders(turns, images)
    row = Row(
        id=identity,
        images=images,
        turns=tuple(turns),
        task=_text_field(value, "task") or task,
        source=source,
        style=_text_field(value, "style") or style,
        meta=_meta(value),
        root=root,
    )
    try:
        canonical_json(row_to_json(row)).encode()
    except (UnicodeEncodeError, ValueError):
        what = "a text or number cannot be stored (half a surrogate pair, or an infinite number)"
        raise _RowError(what, "mend it, or remove the row") from None
    return row


def _is_test(value: Mapping[str, Any]) -> bool:
    return "conversations" not in value and "text" in value and "answer" in value


def _is_plain(value: Mapping[str, Any]) -> bool:
    return "text" in value and not {"conversations", "answer", "question_id"} & set(value)


def _turns(value: Mapping[str, Any], images: Sequence[str]) -> list[Turn]:
    if _is_plain(value):
        text = value["text"]
        if not isinstance(text, str) or not text.strip():
            raise _RowError("'text' is empty", "write the text, or remove the row")
        return [Turn("assistant", text)]
    return _test_turns(value, images) if _is_test(value) else _train_turns(value)


def _images(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and item.strip() for item in found):
        raise _RowError("'image' must be a path or a list of paths", "name the picture, or leave the key out")
    return tuple(found)


def _train_turns(value: Mapping[str, Any]) -> list[Turn]:
    conversation = value.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise _RowError("the row has no conversations", "add a human and a gpt turn")
    turns = []
    for number, message in enumerate(conversation, start=1):
        role = message.get("from") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise _RowError(f"turn {number} is from {role!r}", "only 'human' and 'gpt' are legal")
        expected = "human" if number % 2 else "gpt"
        if role != expected:
            raise _RowError(f"turn {number} is from '{role}', expected '{expected}'", "begin with human and alternate")
        text = message.get("value")
        if not isinstance(text, str) or not text.strip():
            what = "answer" if role == "gpt" else "question"
            raise _RowError(f"turn {number} is an empty {what}", "write the text, or remove the row")
        turns.append(Turn(_ROLES[role], text.strip()))  # type: ignore[arg-type]
    if turns[-1].role != "assistant":
        raise _RowError("the last turn is not an answer", "add the gpt turn")
    return turns


def _test_turns(value: Mapping[str, Any], images: Sequence[str]) -> list[Turn]:
    question, answer = value["text"], value["answer"]
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    if isinstance(answer, list) and answer and all(isinstance(item, str) for item in answer):
        answer = answer[0]
    if not isinstance(question, str) or not question.strip():
        raise _RowError("'text' is an empty question", "write the text, or remove the row")
    if not isinstance(answer, str) or not answer.strip():
        raise _RowError("'answer' is empty", "write the answer, or remove the row")
    if PLACEHOLDER not in question:  # test files of this family leave the placeholder out
        question = f"{PLACEHOLDER}\n" * len(images) + question.strip()
    return [Turn("user", question.strip()), Turn("assistant", answer.strip())]


def _meta(value: Mapping[str, Any]) -> dict[str, Any]:
    meta = value.get("meta", {})
    if not isinstance(meta, dict):
        raise _RowError("'meta' must be an object", 'write {"key": value}')
    if _is_plain(value):
        return {**meta, "raw": True}
    if "raw" in meta:
        raise _RowError("'raw' is for rows of text alone", "remove it, or give the row a 'text' and no conversation")
    meta = dict(meta)
    if isinstance(value.get("asd"), dict):  # how a row of another answer style was made
        meta.setdefault("asd", value["asd"])
    if _is_test(value):
        if isinstance(value["answer"], list):
            meta.setdefault("answers", value["answer"])
        if "answer_bbox" in value:
            meta["box"] = _numbers(value["answer_bbox"], 4, "answer_bbox")
        if "size" in value:
            meta["size"] = _numbers(value["size"], 2, "size")
    return meta


def _numbers(value: Any, count: int, key: str) -> list[float]:
    """Numbers given as a list or as its printed form."""
    if isinstance(value, str):
        value = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", value)
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count:
        raise _RowError(f"'{key}' must be {count} numbers", "mend the key, or remove the row")
    return numbers


def _text_field(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key, "")
    if not isinstance(found, str):
        raise _RowError(f"'{key}' must be a text", "mend the key, or leave it out")
    return found


def _check_placeholders(turns: Sequence[Turn], images: Sequence[str]) -> None:
    count = sum(turn.text.count(PLACEHOLDER) for turn in turns)
    if any(PLACEHOLDER in turn.text for turn in turns if turn.role == "assistant"):
        raise _RowError(f"an answer contains {PLACEHOLDER}", "placeholders belong into questions")
    if count != len(images):
        fix = f"write {PLACEHOLDER} once for each image" if images else f"name the image, or remove {PLACEHOLDER}"
        raise _RowError(f"{count} {PLACEHOLDER} placeholder(s) for {len(images)} image(s)", fix)


# ---- a file's elements ----------------------------------------------------------------------------------------------
def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), fix="check the path") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("is not UTF-8 text", where=f"{path}:{line}", fix="save the file as UTF-8") from None


def _items(text: str) -> list[_Item]:
    start = _BLANK.match(text).end()  # type: ignore[union-attr]
    if text[start : start + 1] == "[":
        return list(_array(text, start + 1))
    items = list(_lines(text))
    if items and items[0].problem and _is_json(text):
        return [_Item(items[0].line, None, "malformed rows (one object; expected an array, or one object per line)")]
    return items


def _is_json(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(text: str) -> Iterator[_Item]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _Item(number, _DECODER.decode(line))
            except (ValueError, RecursionError) as error:
                yield _Item(number, None, f"malformed JSON ({_reason(error)})")


def _array(text: str, at: int) -> Iterator[_Item]:
    """Elements of an array with their lines; after a malformed one, go on at the next thing that looks like a row."""
    line, counted = 1, 0

    def line_of(position: int) -> int:
        nonlocal line, counted
        line += text.count("\n", counted, position)
        counted = max(counted, position)
        return line

    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]":
            rest = _BLANK.match(text, at + 1).end()  # type: ignore[union-attr]
            if rest < len(text):
                yield _Item(line_of(rest), None, "malformed JSON (text after the end of the array)")
            return
        if at >= len(text):
            yield _Item(line_of(at), None, "malformed JSON (the array is not closed; is the file cut off?)")
            return
        start = line_of(at)
        try:
            value, end = _DECODER.raw_decode(text, at)
            after = _BLANK.match(text, end).end()  # type: ignore[union-attr]
            if text[after : after + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
        except (ValueError, RecursionError) as error:
            bad = max(at, getattr(error, "pos", at))
            yield _Item(line_of(min(bad, len(text))), None, f"malformed JSON ({_reason(error)})")
            following = _ROW_START.search(text, max(bad, at + 1))
            if not following:
                return
            at = following.start()
            continue
        yield _Item(start, value)
        at = after + 1 if text[after] == "," else after


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error) or "nested too deeply"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
