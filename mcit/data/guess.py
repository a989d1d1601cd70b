"""What the files of a folder most likely are: kind, split, task, pictures, answer style. Looks at the first rows of each.

A guess is named and never silent: `Source.notes` says what every choice rests on.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mcit.core.errors import DataError, Problem
from mcit.core.types import Row
from mcit.data.formats.embedded import Embedded
from mcit.data.formats.files import elements
from mcit.data.formats.reader import RowReader, unread
from mcit.data.formats.turns import LAYOUTS, PAIRS, Kind
from mcit.data.placeholder import PLACEHOLDER

SEEN = 200
"""Rows of a file that are looked at."""
_SPLITS = {
    "test": ("test", "eval", "testdev"),
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training"),
}
_ENDINGS = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
_UNREAD = {
    **dict.fromkeys((".csv", ".tsv", ".xls", ".xlsx"), "is not read: write its rows as JSON lines or Parquet"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar"), "is packed: unpack it"),
}
_BOX = re.compile(r"\[?\s*{n}(?:\s*,\s*{n}){{3}}\s*\]?".format(n=r"(?:\d+(?:\.\d+)?|\.\d+)"))
STYLES = {  # style: scorer, new tokens
    "yes_no": ("exact", 16),
    "letter": ("choice", 16),
    "box": ("grounding", 48),
    "word": ("exact", 16),
    "phrase": ("exact", 32),
    "text": ("contains", 256),
}


@dataclass
class Source:
    """A file, or a folder of tables, and what it is taken for."""

    path: Path
    split: str
    kind: Kind
    fields: tuple[str, str] | None = None
    images: Path | None = None
    style: str = "text"
    rows: int = 0
    """Rows that could be read, of the first `SEEN`."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sources_below(folder: Path) -> tuple[dict[str, list[Source]], list[str]]:
    """Sources by task, and a line for every file that was left out with the reason.

    Raises DataError when `folder` is none, or holds no rows at all.
    """
    if not folder.is_dir():
        raise DataError("is not a folder", where=str(folder), fix="give the folder that holds the JSON files")
    tasks: dict[str, list[Source]] = {}
    left_out: list[str] = []
    for path in _candidates(folder):
        source = _looked_at(path, folder)
        if isinstance(source, str):
            left_out.append(f"{path.relative_to(folder)}: left out: {source}")
        else:
            tasks.setdefault(_task(path, folder), []).append(source)
    if not tasks:
        reasons = f" ({'; '.join(left_out[:3])})" if left_out else ""
        raise DataError(
            f"no file with rows was found{reasons}", where=str(folder), fix="see docs/data.md for what rows look like"
        )
    return tasks, left_out


def _candidates(folder: Path) -> Iterator[Path]:
    """Files by name, folders that datasets saved as one; nothing hidden, nothing inside such a folder."""
    saved: list[Path] = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or any(path.is_relative_to(s) for s in saved):
            continue
        if path.is_dir() and (path / "state.json").is_file():
            saved.append(path)
            yield path
        elif (
            path.is_file()
            and path.suffix.lower() in (*_ENDINGS, *_UNREAD)
            and path.name not in ("dataset_dict.json", "dataset_info.json")
        ):
            yield path


def _looked_at(path: Path, folder: Path) -> Source | str:
    """The source, or why it is none."""
    if path.suffix.lower() in _UNREAD:
        return _UNREAD[path.suffix.lower()]
    try:
        found = [element for element in islice(elements(path), SEEN)]
    except DataError as error:
        return error.what
    values = [element.value for element in found if isinstance(element.value, dict)]
    if not values:
        return found[0].problem if found and found[0].problem else "holds no rows"
    kind, fields, why = _kind(values)
    if kind is None:
        return why
    source = Source(path, _split(path, values), kind, fields)
    source.notes.append(why)
    if keys := unread(values, kind, fields):
        source.notes.append(f"not read: {', '.join(map(repr, keys[:6]))}{' and others' if len(keys) > 6 else ''}")
    reader = RowReader("task", path.name, kind=kind, fields=fields, embedded=_Nowhere(path))
    rows = []
    for item in reader.read(found):
        if isinstance(item, Row):
            rows.append(item)
        else:
            source.problems.append(item)
    source.rows = len(rows)
    source.style, why = _style([row.answer for row in rows])
    source.notes.append(why)
    _find_images(source, rows, folder)
    return source


class _Nowhere(Embedded):
    """Takes pictures out of rows and keeps none."""

    def put(self, data: bytes) -> str:
        return "held"


def _kind(values: Sequence[dict[str, Any]]) -> tuple[Kind | None, tuple[str, str] | None, str]:
    """Kind and fields by the most frequent keys, and what that rests on."""
    first = Counter(_kind_of(value) for value in values).most_common(1)[0][0]
    if first in LAYOUTS:
        return first, None, f"kind {first}, by its keys"
    if isinstance(first, tuple):
        return "llava", first, f"question and answer under '{first[0]}' and '{first[1]}'"
    keys = ", ".join(list(values[0])[:6])
    return None, None, f"no conversations, messages, question and answer in its rows; keys: {keys}"


def _kind_of(value: dict[str, Any]) -> Kind | tuple[str, str] | None:
    for kind, layout in LAYOUTS.items():
        for key in layout.lists:
            turns = value.get(key)
            if isinstance(turns, list) and turns and isinstance(turns[0], dict):
                names = {turn.get(layout.who) for turn in turns if isinstance(turn, dict)}
                if names <= set(layout.roles):
                    return kind
    if "text" in value:
        return "llava"
    return next((pair for pair in PAIRS if pair[0] in value and pair[1] in value), None)


def _split(path: Path, values: Sequence[dict[str, Any]]) -> str:
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    for split, names in _SPLITS.items():
        if words & set(names):
            return split
    return "test" if "question_id" in values[0] and "conversations" not in values[0] else "train"


def _task(path: Path, folder: Path) -> str:
    """The file's name without words for splits and shares; the folder's where nothing is left."""
    known = {name for names in _SPLITS.values() for name in names}
    words = [word for word in re.split(r"[\W_]+", path.stem) if word and word.lower() not in known]
    words = [word for word in words if not word.isdigit()]
    if words and path.parent == folder:
        return _name(words)
    name = path.parent.name if path.parent != folder else folder.resolve().name
    return _name([word for word in re.split(r"[\W_]+", name) if word]) or "task"


def _name(words: Sequence[str]) -> str:
    """Words in ASCII letters and digits, without accents; a word with other letters ends in a number drawn from it."""
    return "-".join(map(_ascii, words))[:100]


def _ascii(word: str) -> str:
    spelled = unicodedata.normalize("NFKD", word.casefold())
    plain = "".join(c for c in spelled if c.isascii())
    whole = all(c.isascii() or unicodedata.combining(c) for c in spelled)
    return plain if whole else plain + hashlib.sha256(word.encode()).hexdigest()[:6]


def _style(answers: Sequence[str]) -> tuple[str, str]:
    """The style that nearly all answers have."""

    def share(test: Any) -> float:
        return sum(bool(test(answer)) for answer in answers) / max(1, len(answers))

    tests = {
        "yes_no": lambda a: a.strip(" .").lower() in ("yes", "no"),
        "letter": lambda a: re.fullmatch(r"[A-Z]\.?", a.strip()),
        "box": lambda a: _BOX.fullmatch(a.strip()),
        "word": lambda a: len(a.split()) == 1,
        "phrase": lambda a: len(a.split()) <= 5,
    }
    style = next((style for style, test in tests.items() if share(test) >= 0.95), "text")
    example = answers[0][:40] if answers else ""
    return style, f"style {style}, from answers such as {example!r}"


def _find_images(source: Source, rows: Sequence[Row], folder: Path) -> None:
    """The folder that most pictures of the rows are found below."""
    named = [row.images[0] for row in rows if row.images and row.images[0] != "held"]
    if not named:
        unplaced = sum(PLACEHOLDER in problem.what for problem in source.problems)
        if unplaced:
            source.notes.append(f"{unplaced} rows do not place their picture with {PLACEHOLDER}")
        return
    home = source.path.parent
    near = [home, *(path for path in home.parents if path == folder or path.is_relative_to(folder))]
    tried = [place for base in near for place in (base, *sorted(p for p in base.iterdir() if p.is_dir()))]
    counts = {place: sum((place / image).is_file() for image in named) for place in dict.fromkeys(tried)}
    best = max(counts, key=lambda place: counts[place])
    if not counts[best]:
        source.notes.append(f"pictures not found, such as {named[0]}: correct `images`")
        return
    source.images = best
    source.notes.append(f"pictures below {best} ({counts[best]} of {len(named)} looked for are there)")
