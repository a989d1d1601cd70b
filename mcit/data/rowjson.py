"""A row as one line of a built data folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcit.core.types import Encoding, Row, Turn


def row_to_json(row: Row, **extra: Any) -> dict[str, Any]:
    """A row as it stands in a built data folder; its image root is not part of it."""
    return {
        "id": row.id,
        "images": list(row.images),
        "turns": [{"role": turn.role, "text": turn.text} for turn in row.turns],
        "task": row.task,
        "source": row.source,
        "style": row.style,
        "meta": {**row.meta, **({"raw": True} if row.encoding.raw else {})},
        **extra,
    }


def row_from_json(value: Mapping[str, Any], *, root: str = "") -> Row:
    """The inverse of `row_to_json`."""
    meta = dict(value["meta"])
    encoding = Encoding(raw=bool(meta.pop("raw", False)))
    return Row(
        id=value["id"],
        images=tuple(value["images"]),
        turns=tuple(Turn(turn["role"], turn["text"]) for turn in value["turns"]),
        task=value["task"],
        source=value["source"],
        style=value["style"],
        meta=meta,
        root=root,
        encoding=encoding,
    )
