"""Rows and pictures for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from mcit.core.errors import Problem
from mcit.core.types import Row, Turn
from mcit.data.formats.element import Element
from mcit.data.formats.files import elements
from mcit.data.formats.reader import RowReader


def picture(folder: Path, name: str = "a.png", *, size: tuple[int, int] = (40, 30), colour: Any = (200, 0, 0)) -> str:
    """Save a plain picture and return its name."""
    Image.new("RGB", size, colour).save(folder / name)
    return name


def row(*texts: str, images: tuple[str, ...] = (), root: Path | str = "", **fields: Any) -> Row:
    """A row of alternating turns: question, answer, question, …"""
    turns = tuple(Turn("assistant" if k % 2 else "user", text) for k, text in enumerate(texts))
    settings: dict[str, Any] = {"id": "r1", "task": "t", "source": "f.json:1", **fields}
    return Row(images=images, turns=turns, root=str(root), **settings)


def llava(identity: str, question: str = "Is it red?", answer: str = "yes", **fields: Any) -> dict[str, Any]:
    """A LLaVA row as it stands in a file."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": identity, "conversations": turns, **fields}


def read_file(path: Path, **settings: Any) -> tuple[list[Row], list[Problem]]:
    """Rows of a file of task ``t``, and its problems."""
    return _sorted(RowReader(**{"task": "t", "label": str(path), **settings}), elements(path))


def read_values(values: Iterable[Any], **settings: Any) -> tuple[list[Row], list[Problem]]:
    """The same for decoded values, numbered from 1."""
    reader = RowReader(**{"task": "t", "label": "x", **settings})
    return _sorted(reader, (Element(k, value) for k, value in enumerate(values, start=1)))


def _sorted(reader: RowReader, items: Iterable[Element]) -> tuple[list[Row], list[Problem]]:
    found = list(reader.read(items))
    return [x for x in found if isinstance(x, Row)], [x for x in found if isinstance(x, Problem)]
