"""A task for tiny families: small pictures of unlike shape, rows with one picture, with several and with none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.families.rows import pictures

LIKE_COUNTS = {"mllama"}
"""Rows of a batch must have equally many pictures: `mcit plan` refuses others (models/families/mllama.py)."""
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


def config(folder: str, *recipes: str, engine: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A run of a family's folder over the recipes: two steps of four rows each, LoRA and projector, fp32."""
    return {
        "name": "family",
        "seed": 3,
        "base": {"family": "hf", "model": str(folder), "dtype": "fp32"},
        "engine": {"micro_batch": 2, "workers": 0, **(engine or {})},
        "checkpoint": {"every": 0},
        "eval": {"tasks": "none"},
        "defaults": {
            "adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"]},
            "optim": {"batch": 4, "lr": 2e-3, "lr_projector": 2e-4, "warmup": 0, "eps": 1e-3},
            "max_steps": 2,
        },
        "stages": [{"recipe": recipe} for recipe in recipes],
        **changes,
    }


def two_tasks(folder: Path, family: str) -> list[str]:
    """Recipes of two tasks: one picture a row; and, where the family can, text and pairs of pictures among them."""
    mixed = {} if family in LIKE_COUNTS else {"text": 3, "several": 3}
    return [recipe(folder / "single", "single", rows=8), recipe(folder / "mixed", "mixed", rows=8, **mixed)]


def _row(name: str, number: int, count: int) -> dict[str, object]:
    shown = [f"{(number + k) % 3}.png" for k in range(count)]
    question = "<image>\n" * count + f"Is it {name}?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": ANSWERS[number % len(ANSWERS)]}]
    return {"id": name, **({"image": shown} if shown else {}), "conversations": turns}
