"""Decoded elements of a source -> rows, each bad one with what is wrong and the cure; reading never stops at one.

Beside conversations (`mcit.data.formats.turns`), CoIN test rows hold ``question_id, text, answer``, a row of ``text`` alone
is plain text without a conversation, and `fields` names question and answer of files with keys of their own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mcit.core.errors import Problem
from mcit.core.types import Encoding, Row, Turn
from mcit.data.formats.element import Element, RowError
from mcit.data.formats.embedded import Embedded, decoded_address
from mcit.data.formats.turns import LAYOUTS, Kind, plain_text, turns_of, with_system_in_front
from mcit.data.placeholder import PLACEHOLDER, front_placeholder

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_OTHER_NAMES = ("image_path", "image_paths", "image_file", "image_files", "img", "img_path", "picture", "pictures")
"""Keys of pictures in other files: not read, so a row that has its picture there would be one without."""
_KEYS = frozenset(
    "id question_id image images text answer answers task style meta asd answer_type answer_bbox size".split()
)


@dataclass(frozen=True)
class RowReader:
    """How the elements of one source become rows."""

    task: str
    label: str
    """Name of the file in messages and in `Row.source`."""
    root: Path | str = ""
    """Image root."""
    kind: Kind = "llava"
    style: str = ""
    """Of rows that name none."""
    placeholders: Literal["keep", "front"] = "keep"
    """``front`` moves a turn's ``<image>`` to its front as the LLaVA trainer does."""
    fields: tuple[str, str] | None = None
    """Keys of question and answer in files that hold one turn each under names of their own."""
    system: Literal["keep", "front"] = "keep"
    """``front`` writes a system turn above the first question."""
    ids: Literal["keep", "number"] = "keep"
    """``number`` puts the row's number behind its id, for files in which ids repeat."""
    embedded: Embedded | None = None
    """Where pictures go that rows hold themselves; without it such rows are refused."""

    def read(self, elements: Iterable[Element]) -> Iterator[Row | Problem]:
        """A row or a problem for each element, in order; one problem for none at all."""
        index = 0
        for index, element in enumerate(elements, start=1):
            source = f"{self.label}:{element.line}"
            identity = _identity(element.value, index)
            if self.ids == "number":
                identity = f"{identity}#{index}"
            if element.problem:
                where = source if element.value is None else f"{source}:{identity}"
                yield Problem(where, element.problem, element.fix)
                continue
            try:
                yield self._row(element.value, identity, source)
            except RowError as error:
                yield Problem(f"{source}:{identity}", error.what, error.fix)
        if not index:
            yield Problem(self.label, "holds no rows", "check the file")

    def _row(self, value: Any, identity: str, source: str) -> Row:
        if not isinstance(value, dict):
            raise RowError(f"expected an object, found {type(value).__name__}", "write one object per row")
        for key in ("id", "question_id"):
            if isinstance(value.get(key), (list, dict, bool)):
                raise RowError(f"{key} is a {type(value[key]).__name__}", "give a text or a whole number")
        if self.fields is not None:
            value = _renamed(value, *self.fields)
        given = _pictures(value)
        turns = self._turns(value, given)
        other = next((key for key in _OTHER_NAMES if value.get(key)), None)
        if other and not given:
            raise RowError(f"the row has its picture under '{other}'", "name the key 'image' (or 'images')")
        images, root = self._stored(given)
        _check_placeholders(turns, images)
        return Row(
            id=identity,
            images=images,
            turns=tuple(turns),
            task=_text_field(value, "task") or self.task,
            source=source,
            style=_text_field(value, "style") or self.style,
            meta=_meta(value),
            root=root,
            encoding=Encoding(raw=_is_plain(value)),
        )

    def _turns(self, value: Mapping[str, Any], pictures: list[Any]) -> list[Turn]:
        if _is_plain(value):
            text = value["text"]
            if not isinstance(text, str) or not text.strip():
                raise RowError("'text' is empty", "write the text, or remove the row")
            return [Turn("assistant", text)]
        turns = _test_turns(value, pictures) if _is_test(value) else turns_of(value, self.kind, pictures)
        if self.system == "front":
            turns = with_system_in_front(turns)
        if self.placeholders == "front":
            turns = [Turn(t.role, front_placeholder(t.text)) if t.role == "user" else t for t in turns]
        return turns

    def _stored(self, pictures: Sequence[Any]) -> tuple[tuple[str, ...], str]:
        """Paths and their root: the source's own, or the folder of pictures taken out of rows."""
        found = [_picture(item) for item in pictures]
        held = [item for item in found if isinstance(item, bytes)]
        if not held:
            return tuple(found), str(self.root)  # type: ignore[arg-type]
        if len(held) < len(found):
            raise RowError(
                "the row holds a picture itself and names another by path", "use one way for all its pictures"
            )
        if self.embedded is None:
            raise RowError("the row holds its picture itself", "name a picture file")
        return tuple(self.embedded.put(item) for item in held), str(self.embedded.folder)


def unread(values: Iterable[Mapping[str, Any]], kind: Kind, fields: tuple[str, str] | None) -> list[str]:
    """Keys of rows that no part of a row is made of, the most frequent first."""
    read = _KEYS.union(fields or ("system", *LAYOUTS[kind].lists))
    return [key for key, _ in Counter(key for value in values for key in value if key not in read).most_common()]


def _identity(value: Any, index: int) -> str:
    """The row's id; its number in the file where it has none."""
    if isinstance(value, dict):
        for key in ("id", "question_id"):
            found = value.get(key)
            if isinstance(found, (str, int)) and not isinstance(found, bool) and (text := str(found)).strip():
                return text
    return f"row-{index}"


def _is_test(value: Mapping[str, Any]) -> bool:
    return "text" in value and ("answer" in value or "answers" in value) and "conversations" not in value


def _is_plain(value: Mapping[str, Any]) -> bool:
    return "text" in value and not {"conversations", "messages", "answer", "answers", "question_id"} & set(value)


def _renamed(value: Mapping[str, Any], question: str, answer: str) -> dict[str, Any]:
    """A row with keys of its own as a test row; the other keys stay."""
    for key in (question, answer):
        if value.get(key) is None or isinstance(value[key], dict):
            raise RowError(f"key '{key}' is missing or no text", "add the key, or correct `fields` in the recipe")
    rest = {
        k: v for k, v in value.items() if k not in (question, answer, "conversations", "messages", "text", "answer")
    }
    return {**rest, "text": plain_text(value[question]), "answer": value[answer]}


# ---- turns of test rows ---------------------------------------------------------------------------------------------
def _test_turns(value: Mapping[str, Any], images: Sequence[Any]) -> list[Turn]:
    question = value["text"]
    if not isinstance(question, str) or not question.strip():
        raise RowError("'text' is an empty question", "write the text, or remove the row")
    answers = _answers(value)
    if not answers or not answers[0]:
        raise RowError("'answer' is empty", "write the answer, or remove the row")
    if PLACEHOLDER not in question:  # test files of this family leave the placeholder out
        question = f"{PLACEHOLDER}\n" * len(images) + question.strip()
    return [Turn("user", question.strip()), Turn("assistant", answers[0])]


def _answers(value: Mapping[str, Any]) -> list[str]:
    """The gold answer, or several that count: the first is trained on and shown."""
    given = value["answer"] if "answer" in value else value["answers"]
    items = given if isinstance(given, list) else [given]
    return [plain_text(item.get("answer") if isinstance(item, dict) else item) for item in items]


# ---- pictures -------------------------------------------------------------------------------------------------------
def _pictures(value: Mapping[str, Any]) -> list[Any]:
    other = next((key for key in _OTHER_MEDIA if value.get(key)), None)
    if other:
        raise RowError(f"the row has a '{other}'", "only pictures and text are supported; remove the row")
    named: list[list[Any]] = []
    for key in ("image", "images"):
        if (given := value.get(key)) is None:
            continue
        found = list(given) if isinstance(given, list) else [given]
        for item in found:
            if not (isinstance(item, str) and item.strip()) and not isinstance(item, (dict, bytes)):
                raise RowError(f"'{key}' must be a path or a list of paths", "name the picture, or leave the key out")
        if found and found not in named:
            named.append(found)
    if len(named) > 1:
        raise RowError("'image' and 'images' name different pictures", "keep one of the two keys")
    return named[0] if named else []


def _picture(item: Any) -> str | bytes:
    """A path below the image root, or the picture itself."""
    if isinstance(item, dict):  # a picture of Hugging Face's datasets: bytes, or a path
        item = item.get("bytes") or item.get("path")
    if isinstance(item, bytes):
        return item
    if not isinstance(item, str) or not item.strip():
        raise RowError("a picture has neither a path nor bytes", "name the picture file")
    if item.startswith("data:"):
        return decoded_address(item)
    if _ADDRESS.match(item):
        fix = "fetch it to a file below the image root and write its path"
        raise RowError(f"the picture {item[:80]!r} is an address, no path", fix)
    if "\\" in item:
        raise RowError(f"the picture path {item!r} has backslashes", "write / between folders")
    return item


def _check_placeholders(turns: Sequence[Turn], images: Sequence[str]) -> None:
    count = sum(turn.text.count(PLACEHOLDER) for turn in turns)
    if count and any(PLACEHOLDER in turn.text for turn in turns if turn.role != "user"):
        who = "an answer" if any(PLACEHOLDER in t.text for t in turns if t.role == "assistant") else "a system turn"
        raise RowError(f"{who} contains {PLACEHOLDER}", "placeholders belong into questions")
    if count != len(images):
        fix = f"write {PLACEHOLDER} once for each image" if images else f"name the image, or remove {PLACEHOLDER}"
        raise RowError(f"{count} {PLACEHOLDER} placeholder(s) for {len(images)} image(s)", fix)


# ---- the rest -------------------------------------------------------------------------------------------------------
def _meta(value: Mapping[str, Any]) -> dict[str, Any]:
    meta = value.get("meta") or {}
    if not isinstance(meta, dict):
        raise RowError("'meta' must be an object", 'write {"key": value}')
    if "raw" in meta and not _is_plain(value):
        raise RowError("'raw' is for rows of text alone", "remove it, or give the row a 'text' and no conversation")
    meta = {key: item for key, item in meta.items() if key != "raw"}
    if isinstance(value.get("asd"), dict):  # how a row of another answer style was made
        meta.setdefault("asd", value["asd"])
    if _is_test(value):
        if isinstance(value.get("answer", value.get("answers")), list):
            meta.setdefault("answers", _answers(value))
        if isinstance(value.get("answer_type"), str):  # OCRBench: some kinds have a rule of their own
            meta.setdefault("answer_type", value["answer_type"])
        if "answer_bbox" in value:
            meta["box"] = _box(_numbers(value["answer_bbox"], 4, "answer_bbox"))
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
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise RowError(f"'{key}' must be {count} numbers", "correct the key, or remove the row")
    return numbers


def _box(numbers: list[float]) -> list[float]:
    x1, y1, x2, y2 = numbers
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        what = f"the box {numbers} is not [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1"
        raise RowError(what, "give shares of the padded picture's side, smaller corner first, or remove the row")
    return numbers


def _text_field(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise RowError(f"'{key}' must be a text", "correct the key, or leave it out")
    return found or ""
