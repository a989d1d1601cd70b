"""A task for tiny families: small pictures of unlike shape, rows with one picture, with several and with none."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.fakes.families.rows import pictures

ANSWERS = ("yes", "no", "two words", "B")


def recipe(folder: Path, task: str, *, rows: int, text: int = 0, several: int = 0, test: int = 4) -> str:
    """Path of a recipe with so many training rows, `text` of them without a picture and `several` with two."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pictures(folder / "images")
    for split, count in (("train", rows), ("test", test)):
        lines = [_row(f"{split}-{k}", k, 0 if k < text else 2 if k < text + several else 1) for k in range(count)]
        (folder / f"{split}.json").write_text(json.dumps(lines))
    sources = [{"kind": "llava", "path": f"{s}.json", "images": "images", "split": s} for s in ("train", "test")]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": f"families/{task}", "task": task, "sources": sources}))
    return str(path)


def _row(name: str, number: int, count: int) -> dict[str, object]:
    shown = [f"{(number + k) % 3}.png" for k in range(count)]
    question = "<image>\n" * count + f"Is it {name}?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": ANSWERS[number % len(ANSWERS)]}]
    return {"id": name, **({"image": shown} if shown else {}), "conversations": turns}
