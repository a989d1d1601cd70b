"""Rows of a task over the stages: picture, question, gold answer, answers and whether they were right."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from mcit.core.errors import DataError, McitError
from mcit.core.paths import cache_dir
from mcit.core.types import JsonDict
from mcit.data.folder import DataFolder
from mcit.data.images import open_image, resolve_below
from mcit.evals.predictions import read_predictions
from mcit.report.matrix import Measured
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan

_SIDE = 160
_LONGEST = 600
"""Characters of a text that are shown; how many more there are is said."""


def examples(run: Path, measured: Measured, mode: str, *, per_task: int = 6) -> dict[str, list[JsonDict]]:
    """By task some rows whose result changed most often over the stages; rows that never changed fill the rest."""
    layout, out = RunLayout(run), {}
    roots = _images(read_plan(layout)["recipes"])
    for task in measured.tasks:
        stages = [row for row in range(len(measured.stages) + 1) if (row, task) in measured.rows]
        if not stages:
            continue
        ids = measured.rows[stages[-1], task]["id"]
        stages = [row for row in stages if measured.rows[row, task]["id"] == ids]
        right = {row: measured.rows[row, task][mode] for row in stages}
        changes = [
            sum(a[k] != b[k] for a, b in zip(list(right.values()), list(right.values())[1:], strict=False))
            for k in range(len(ids))
        ]
        chosen = sorted(range(len(ids)), key=lambda k: (-changes[k], k))[:per_task]
        answers = {
            row: {p["id"]: p for p in read_predictions(layout.evals(measured.number(row)) / task)} for row in stages
        }
        root = roots.get(task)
        out[task] = [_example(ids[k], k, stages, right, answers, root, measured) for k in sorted(chosen)]
    return out


def _example(
    name: str,
    place: int,
    stages: list[int],
    right: dict[int, list[float]],
    answers: dict[int, dict[str, JsonDict]],
    root: Path | None,
    measured: Measured,
) -> JsonDict:
    last = answers[stages[-1]][name]
    gold = last["gold"]
    return {
        "id": name,
        "question": shown(last["question"].replace("<image>", "").strip()),
        "gold": shown(str(gold.get("answer", ""))),
        "picture": _thumbnail(root, gold.get("image")),
        "answers": [
            {
                "after": measured.stages[row - 1]["folder"] if row else "base",
                "text": shown(answers[row][name]["text"]),
                "right": right[row][place] >= 0.5,
            }
            for row in stages
        ],
    }


def shown(text: str) -> str:
    """A text as the page shows it: cut off where it is long, with control and direction marks made visible."""
    more = len(text) - _LONGEST
    text = text[:_LONGEST] + (f" … ({more:,} more characters)" if more > 0 else "")
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)


def _images(recipes: Mapping[str, str]) -> dict[str, Path]:
    """Where the test pictures of each task lie, for data sets that are still in the cache; each is opened once."""
    roots: dict[str, Path] = {}
    for recipe, digest in recipes.items():
        try:
            data = DataFolder.open(cache_dir() / "data" / f"{recipe.replace('/', '-')}-{digest[:12]}")
            first = next(iter(data.rows("test")), None)
        except (McitError, OSError):  # no data set of that recipe here any more
            continue
        if first is not None:
            roots.setdefault(data.task, Path(first.root))
    return roots


def _thumbnail(root: Path | None, name: str | None) -> str | None:
    """A small WebP as a data address; None where there is no picture any more, or its name leads out of `root`."""
    if root is None or not name:
        return None
    try:
        where = f"{root}:{name}"
        small = open_image(resolve_below(root, name, where=where), where=where)
    except DataError:
        return None
    small.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
