"""Recipes and a config from the files of a folder, for a user's first run."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from mcit.core.errors import DataError
from mcit.core.files import write_text
from mcit.data.guess import SEEN, STYLES, Source, sources_below

_HEAD = "# Written by `mcit init`. What it guessed stands beside each line: check it, then `mcit data check {name}`.\n"


def write_start(folder: Path, out: Path, *, model: str = "") -> tuple[list[Path], list[str]]:
    """Write one recipe per task and last a config, ``run.yaml``, into `out`; returns the files, and what was guessed, by line.

    Raises DataError for a folder without rows, an `out` that the files do not lie below, or when a file to write is there.
    """
    tasks, lines = sources_below(folder)
    if not folder.resolve().is_relative_to(out.resolve()):
        fix = "give the folder of the files, or one above it: a recipe reads what lies below it"
        raise DataError("the files do not lie below it", where=str(out), fix=fix)
    texts = {out / f"{task}.yaml": _recipe(task, sources, out) for task, sources in sorted(tasks.items())}
    config = "run"
    while config in tasks:
        config += "-all"
    texts[out / f"{config}.yaml"] = _config(folder, sorted(tasks), out, model)
    there = [path for path in texts if path.exists()]
    if there:
        raise DataError("is there already", where=str(there[0]), fix="give another folder with --out")
    for path, text in texts.items():
        write_text(path, text)
    for task, sources in sorted(tasks.items()):
        lines += _said(task, sources, folder)
    if not model:
        lines.append(f"{config}.yaml: no --model given: the small embedded model stands in; set base before a real run")
    return list(texts), lines


def _recipe(task: str, sources: list[Source], out: Path) -> str:
    entries = []
    for source in sources:
        entry: dict[str, object] = {"kind": source.kind, "path": _relative(source.path, out)}
        entry |= {"split": source.split, "style": source.style}
        if source.images is not None:
            entry["images"] = _relative(source.images, out)
        if source.fields is not None:
            entry["fields"] = list(source.fields)
        entries.append((entry, "; ".join(source.notes)))
    judged = [s for s in sources if s.split == "test"] or sources
    style = Counter(source.style for source in judged).most_common(1)[0][0]
    scorer, tokens = STYLES[style]
    body = [_HEAD.format(name=f"{task}.yaml"), f"{_line('name', task)}{_line('task', task)}sources:\n"]
    for entry, note in entries:
        body.append(f"  # {note}\n  - {_flow(entry)}\n")
    if not any(source.split == "test" for source in sources):
        body.append("# no file for the test was found: nothing of this task can be scored until one is added\n")
    body.append(f"eval: {_flow({'scorer': scorer, 'style': style, 'max_new_tokens': tokens})}\n")
    return "".join(body)


def _config(folder: Path, tasks: list[str], out: Path, model: str) -> str:
    base = {"family": "hf", "model": model, "dtype": "bf16"} if model else {"family": "embedded", "dtype": "fp32"}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name)[:100].strip("._-") or "run"
    stages = "".join(f"  - {_flow({'recipe': str(out / f'{task}.yaml')})}\n" for task in tasks)
    return (
        "# Written by `mcit init`: one stage per task, in the order of their names.\n"
        "# Order, learning rate and rank are yours to choose.\n"
        f"{_line('name', name)}"
        f"base: {_flow(base)}\n"
        "engine: {micro_batch: 4}\n"
        "defaults:\n"
        "  adapter: {kind: lora, rank: 16, alpha: 32, also_train: [projector], carry: merge}\n"
        "  optim: {batch: 16, lr: 2.0e-4, lr_projector: 2.0e-5, schedule: cosine, warmup: 0.03}\n"
        "  epochs: 1\n"
        f"stages:\n{stages}"
        "eval: {tasks: seen}\n"
    )


def _said(task: str, sources: list[Source], folder: Path) -> list[str]:
    lines = []
    for source in sources:
        more = "the first " if source.rows + len(source.problems) >= SEEN else ""
        looked = f"{source.rows} of {more}{source.rows + len(source.problems)} rows can be read"
        lines.append(
            f"task {task}: {source.path.relative_to(folder)} -> {source.split}; {looked}; {'; '.join(source.notes)}"
        )
        lines += [f"  {problem.where}: {problem.what}" for problem in source.problems[:3]]
    if not any(source.split == "test" for source in sources):
        lines.append(f"task {task}: no file for the test: nothing of it can be scored until one is added")
    return lines


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()


def _line(key: str, name: str) -> str:
    """A name in quotes where YAML would take it for something else: ``2024``, ``1e3``, ``yes``, ``null``."""
    plain = name[0].isalpha() and yaml.safe_dump(name).startswith(name)
    return f"{key}: {name}\n" if plain else f"{key}: '{name}'\n"


def _flow(value: Mapping[str, object]) -> str:
    return yaml.safe_dump(
        dict(value), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    ).strip()
