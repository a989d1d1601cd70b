"""Recipes on disk for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.rows import llava, picture


def recipe_file(folder: Path, *, train: list[Any], test: list[Any] | None = None, **settings: Any) -> Path:
    """Write row files, one picture ``images/a.png`` and a recipe of two sources; returns the recipe's path."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if not (folder / "images" / "a.png").exists():
        picture(folder / "images")
    sources = [{"kind": "llava", "path": "train.json", "images": "images", "split": "train"}]
    (folder / "train.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in train) + "\n]")
    if test is not None:
        (folder / "test.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in test) + "\n]")
        sources.append({"kind": "llava", "path": "test.json", "images": "images", "split": "test"})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "some/task", "task": "task", "sources": sources, **settings}))
    return path


def rows(count: int, *, prefix: str = "r", **fields: Any) -> list[dict[str, Any]]:
    """Rows about the picture ``a.png``, each with a question of its own."""
    return [
        llava(f"{prefix}{k}", f"<image>\nIs it {prefix} {k}?", "yes" if k % 2 else "no", image="a.png", **fields)
        for k in range(count)
    ]
