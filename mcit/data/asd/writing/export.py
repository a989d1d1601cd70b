"""Training rows of a built recipe as one LLaVA file, ``train_x20.json``, for other trainers of that family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mcit.core.errors import DataError
from mcit.core.files import write_text
from mcit.core.types import JsonDict, Row
from mcit.data.recipe import FileSource, Recipe

_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def llava_row(row: Row) -> JsonDict:
    """One element of the array: ``id, image, conversations`` and, beside what LLaVA reads, ``style``, ``asd``, ``meta``."""
    meta = {key: value for key, value in row.meta.items() if key != "asd"}
    value: JsonDict = {"id": row.id}
    if row.images:
        value["image"] = row.images[0] if len(row.images) == 1 else list(row.images)
    value["conversations"] = [{"from": _ROLES[turn.role], "value": turn.text} for turn in row.turns]
    value["style"] = row.style
    if "asd" in row.meta:
        value["asd"] = row.meta["asd"]
    return {**value, **({"meta": meta} if meta else {})}


def export_llava(recipe: Recipe, rows: Sequence[Row], out: Path) -> str:
    """Write the array; returns the folder that image paths start from (empty without pictures).

    Raises DataError for pictures below several roots, plain texts, and an `out` that is a source of the recipe.
    """
    for source in recipe.sources:
        if isinstance(source, FileSource) and recipe.file(source.path).resolve() == out.resolve():
            raise DataError("is a source file of the recipe", where=str(out), fix="choose another --out")
    roots = sorted({row.root for row in rows if row.images})
    if len(roots) > 1:
        raise DataError(
            f"pictures lie below {len(roots)} folders: {', '.join(roots)}",
            where=str(recipe.path),
            fix="export recipes with one image folder",
        )
    plain = next((row for row in rows if row.turns[0].role == "assistant"), None)
    if plain is not None:
        raise DataError("a plain text has no place in a LLaVA file", where=plain.where, fix="leave such sources out")
    lines = [json.dumps(llava_row(row), ensure_ascii=False) for row in rows]
    write_text(out, "[\n" + ",\n".join(lines) + "\n]\n")
    return roots[0] if roots else ""
