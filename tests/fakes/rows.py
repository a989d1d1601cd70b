"""Rows and pictures for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from mcit.core.types import Row, Turn


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
