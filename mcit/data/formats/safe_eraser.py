"""SafeEraser's records (arXiv:2502.12520): one per harmful picture, each of several rows, as its released code reads them.

A record holds ``image_path``, ``SDImage_path`` (a harmless counterpart), ``unsafe_pairs`` (each ``question``,
``model_response``, ``sd_response``) and up to four of ``UnharmPair_text1|2`` and ``UnharmPair_image1|2`` (each ``Question``,
``Prediction``). A source reads one `part` of them: ``forget`` the questions with the harmful responses, ``decouple`` the same
questions about the harmless picture with its normal responses, ``retain`` the unharmful pairs. Rows of ``forget`` and
``decouple`` that belong together have one id. ``meta.category`` is the folder of the picture.

Texts stay as they are (the released code puts all letters but the first in lower case), and pairs about a concept alone
have no picture (there they carry the harmful one).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from mcit.data.formats.element import Element
from mcit.data.placeholder import PLACEHOLDER

Part = Literal["forget", "decouple", "retain"]
_UNHARMFUL = {"text1": False, "text2": False, "image1": True, "image2": True}
"""Pairs of a record, and whether they ask about the picture."""


def rows_of(records: Iterable[Element], part: Part) -> Iterator[Element]:
    """Rows in LLaVA's layout; a record that cannot be used comes through with what is wrong."""
    for record in records:
        if record.problem:
            yield record
            continue
        try:
            yield from _rows(record, part)
        except (KeyError, TypeError) as error:
            said = f"has no {error}" if isinstance(error, KeyError) else "holds something else than SafeEraser's pairs"
            yield Element(record.line, {"id": str(record.line)}, said, "compare it with SafeEraser's layout")


def _rows(record: Element, part: Part) -> Iterator[Element]:
    value: Mapping[str, Any] = record.value
    picture = value["image_path"]
    meta = {"category": PurePosixPath(picture).parent.name}
    if part == "retain":
        for name, seen in _UNHARMFUL.items():
            pair = value.get(f"UnharmPair_{name}")
            if pair is not None:
                yield _row(record, name, picture if seen else None, pair["Question"], pair["Prediction"], meta)
        return
    shown, answer = (picture, "model_response") if part == "forget" else (value["SDImage_path"], "sd_response")
    for number, pair in enumerate(value["unsafe_pairs"], start=1):
        yield _row(record, str(number), shown, pair["question"], pair[answer], meta)


def _row(record: Element, name: str, picture: str | None, question: str, answer: str, meta: Any) -> Element:
    asked = f"{PLACEHOLDER}\n{question}" if picture else question
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    image = {"image": picture} if picture else {}
    return Element(record.line, {"id": f"{record.line}-{name}", **image, "conversations": turns, "meta": meta})
