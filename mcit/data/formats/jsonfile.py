"""Elements of a JSON array, or of a file with one JSON value per line, in pieces: memory does not grow with the file.

Bytes that are no UTF-8 become half surrogate pairs, which no row may hold: the row is refused, its neighbours are read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mcit.core.errors import DataError
from mcit.core.files import NOT_JSON
from mcit.data.formats.element import Element

LONGEST = 16 << 20
"""Characters of one row, bytes of one line: no context takes more, a picture inside a row belongs into a file."""
_PIECE = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
_FIRST_KEYS = "id question_id image images conversations messages text task style source meta".split()
"""Keys that a row begins with, beside those that the rows of the file begin with."""
_INNER_KEYS = frozenset("from role type value content".split())
"""Keys that parts of a row begin with."""
_MOST_KEYS = 40
_FIRST_KEY = re.compile(r'\{\s*"([^"\\]+)"\s*:')
_KEPT = 256
"""Characters that are looked at again with the next piece when the start of a row is searched."""
_CUT = 16
"""A fault this close to the end of a piece may come from the cut: the longest literal or escape is shorter."""
_TOO_LONG = "write one row per line, and pictures as files; a longer row fits into no model's context"
_OTHER_FILES = {
    b"\xff\xfe": "is UTF-16 text",
    b"\xfe\xff": "is UTF-16 text",
    b"PK\x03\x04": "is a zip archive",
    b"\x1f\x8b": "is compressed with gzip",
    b"PAR1": "is a Parquet file",
    b"ARROW1": "is an Arrow file",
}


def json_elements(path: Path) -> Iterator[Element]:
    """Elements in the file's order. Raises DataError for a file that cannot be read or is no UTF-8 text at all."""
    try:
        with open(path, "rb") as file:
            start = _start(file, path)
            file.seek(start)
            yield from _array(file) if file.read(1) == b"[" else _lines(file, start)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), fix="check the path") from None


def _start(file: BinaryIO, path: Path) -> int:
    """Position of the first character that is not blank, byte order mark left out."""
    head = file.read(8)
    for mark, what in _OTHER_FILES.items():
        if head.startswith(mark):
            fix = "save the file as UTF-8" if "UTF" in what else "unpack it, or name it as it is: .parquet, .arrow"
            raise DataError(what, where=str(path), fix=fix)
    at = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    file.seek(at)
    while piece := file.read(_PIECE):
        kept = piece.lstrip(b" \t\r\n")
        if kept:
            return at + len(piece) - len(kept)
        at += len(piece)
    return at


# ---- one value per line ---------------------------------------------------------------------------------------------
def _lines(file: BinaryIO, start: int) -> Iterator[Element]:
    file.seek(0)
    number, first, decoder = file.read(start).count(b"\n"), True, _Decoder()
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST)
            yield Element(number, None, f"the line is longer than {LONGEST >> 20} MiB", _TOO_LONG)
            continue
        text = line.decode("utf-8", "surrogateescape").strip().removeprefix("\ufeff")
        if not text:
            continue
        element = decoder.line(number, text)
        if element.problem and first:
            whole = _one_object(file, start)
            if whole:
                yield Element(number, None, whole, "give an array of rows, or one row per line")
                return
        first = False
        yield element


def _one_object(file: BinaryIO, start: int) -> str:
    """What to say of a file that is one object over several lines; empty if it is not."""
    back = file.tell()
    file.seek(start)
    text = file.read(LONGEST + 1)
    file.seek(back)
    try:
        value = json.loads(text) if len(text) <= LONGEST else None
    except NOT_JSON:
        return ""
    if not isinstance(value, dict):
        return ""
    keys = ", ".join(list(value)[:6])
    return f"malformed rows (one object; expected an array, or one object per line; its keys are {keys})"


# ---- an array -------------------------------------------------------------------------------------------------------
class _Window:
    """A piece of the text that moves over the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = _Decoder()
        back = file.tell()
        file.seek(0)
        self.line = file.read(back).count(b"\n") + 1
        self.text, self.at, self._counted, self.ended = "", 0, 0, False
        self.comma = False
        """Whether a comma follows the element that was decoded last."""
        self._keys = list(_FIRST_KEYS)

    def more(self) -> bool:
        """Drop what is done with and read on; False at the end of the file."""
        if self.ended:
            return False
        self.line_of(self.at)
        piece = self._file.read(max(_PIECE, len(self.text) - self.at))
        self.ended = not piece
        self.text = self.text[self.at :] + self._bytes.decode(piece, final=self.ended)
        self._counted -= self.at
        self.at = 0
        return not self.ended

    def line_of(self, position: int) -> int:
        """Line of a position that is not before the last one asked for."""
        self.line += self.text.count("\n", self._counted, position)
        self._counted = max(self._counted, position)
        return self.line

    def next(self) -> str:
        """The next character that is not blank, where the window then stands; empty at the end."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def element(self) -> Element:
        """Decode the element at the window and go behind it and its comma; or stay, and say what is wrong."""
        while True:
            start = self.line_of(self.at)
            try:
                value, end, constants = self._json.at(self.text, self.at)
                self._begins(next(iter(value), "") if isinstance(value, dict) else "")
                after = _BLANK.match(self.text, end).end()  # type: ignore[union-attr]
                if self.text[after : after + 1] in (",", "]") and after < len(self.text):
                    self.comma = self.text[after] == ","
                    self.at = after + self.comma
                    return Element(start, value, constants)
                fault: Exception = json.JSONDecodeError("Expecting ',' delimiter", self.text, after)
            except (ValueError, RecursionError) as error:
                fault = error
            if self.ended or not self._cut(fault):
                return self._malformed(fault)
            if len(self.text) - self.at > LONGEST:
                self.at += 1
                return Element(start, None, f"the row is longer than {LONGEST >> 20} MiB", _TOO_LONG)
            self.more()

    def _cut(self, fault: Exception) -> bool:
        """Whether a fault may come from the end of the piece."""
        if not isinstance(fault, json.JSONDecodeError):
            return False
        return fault.msg.startswith("Unterminated string") or fault.pos >= len(self.text.rstrip()) - _CUT

    def _malformed(self, fault: Exception) -> Element:
        if begun := _FIRST_KEY.match(self.text, self.at):
            self._begins(begun[1])
        bad = min(max(self.at, getattr(fault, "pos", self.at)), len(self.text))
        self.comma = False
        found = Element(self.line_of(bad), None, f"malformed JSON ({_reason(fault)})")
        self.at = max(bad, self.at + 1)
        return found

    def _begins(self, key: str) -> None:
        if key and key not in self._keys and key not in _INNER_KEYS and len(self._keys) < _MOST_KEYS:
            self._keys.append(key)

    def to_next_row(self) -> bool:
        """Go to what looks like the start of a row; False when there is none."""
        row_start = re.compile(rf'\{{\s*"(?:{"|".join(map(re.escape, self._keys))})"\s*:')
        while True:
            found = row_start.search(self.text, self.at)
            if found:
                self.at = found.start()
                return True
            self.at = max(self.at, len(self.text) - _KEPT)
            if not self.more():
                return False


def _array(file: BinaryIO) -> Iterator[Element]:
    """Elements of an array; after a malformed one, go on at the next thing that looks like a row."""
    window = _Window(file)
    while True:
        mark = window.next()
        if mark == "]":
            if window.comma:
                what = "malformed JSON (a comma before the end of the array: is a row missing?)"
                yield Element(window.line_of(window.at), None, what)
            window.at += 1
            if window.next():
                yield Element(window.line_of(window.at), None, "malformed JSON (text after the end of the array)")
            return
        if not mark:
            what = "malformed JSON (the array is not closed; is the file cut off?)"
            yield Element(window.line_of(window.at), None, what)
            return
        element = window.element()
        yield element
        if element.problem and element.value is None and not window.to_next_row():
            return


# ---- decoding -------------------------------------------------------------------------------------------------------
class _Decoder:
    """JSON with NaN and infinities decoded, and named."""

    def __init__(self) -> None:
        self._constants: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._constant)

    def at(self, text: str, start: int) -> tuple[Any, int, str]:
        """Value, its end, and what is wrong with its numbers. Raises ValueError or RecursionError."""
        self._constants.clear()
        value, end = self._decoder.raw_decode(text, start)
        return value, end, f"{self._constants[0]} is not a JSON number" if self._constants else ""

    def line(self, number: int, text: str) -> Element:
        """The one value of a line."""
        try:
            value, end, constants = self.at(text, 0)
            if end < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except (ValueError, RecursionError) as error:
            return Element(number, None, f"malformed JSON ({_reason(error)})")
        return Element(number, value, constants)

    def _constant(self, name: str) -> float:
        self._constants.append(name)
        return float(name.replace("Infinity", "inf"))


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error) or "nested too deeply"
