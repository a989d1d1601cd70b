"""Stages that a run shares with another one by reference: ``stages/01-letter.json`` in place of the folder.

A reference names the folder of the run that trained the stage, and the checksum of its manifest, which holds the
checksums of its files: what is read through it is what was there when the reference was made, or an error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from mcit.core.errors import StateError
from mcit.core.files import copy_file, explained, sha256_file, write_bytes
from mcit.core.records import Reference
from mcit.core.stored import MANIFEST, read_sealed, write_sealed
from mcit.runs.layout import RunLayout

_ANSWERS = ("backend.json", "generation.json", "predictions.jsonl", "rows.json", "score.json")
"""Files of a scored task in the order in which they are made: a part of them is made again."""


def home(layout: RunLayout, folder: str) -> Path:
    """Where the files of a stage are: its own folder, or the one it is shared from.

    Raises StateError when a reference is damaged, or leads to a stage that is gone or is another one now.
    """
    own, reference = layout.stage(folder), layout.reference(folder)
    if own.is_dir() or not reference.is_file():
        return own
    path, digest = _read(reference)
    fix = f"restore it from a copy, or remove {reference}: the stage is then trained again in this run"
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise StateError("the stage is shared with this run and is gone", where=str(path), fix=fix)
    if sha256_file(manifest) != digest:
        raise StateError("the stage is shared with this run and is another one now", where=str(path), fix=fix)
    return path


def shared_from(layout: RunLayout, folder: str) -> Path | None:
    """The run that a stage is shared from; None for a stage of its own or none at all."""
    if layout.stage(folder).is_dir() or not layout.reference(folder).is_file():
        return None
    return _read(layout.reference(folder))[0].parent.parent


def _read(reference: Path) -> tuple[Path, str]:
    """Folder and checksum that a reference names."""
    found = read_sealed(reference, Reference)
    path = Path(found["stage"])
    if path.name != reference.stem:
        raise StateError("is a reference to another stage", where=str(reference), fix=Reference.fix)
    return Path(os.path.normpath(reference.parent / path)), found["manifest_sha256"]


def check_order(layout: RunLayout, folders: Sequence[str]) -> None:
    """Raise StateError for a stage that is missing while a later one, which was trained on it, is there."""
    there = [home(layout, folder).is_dir() for folder in folders]
    if there != sorted(there, reverse=True):
        first = there.index(False)
        later = folders[there.index(True, first)]
        name = layout.reference(folders[first]).name
        fix = (
            f"restore it, or its reference {name}, from a copy, or run the same command again: it is then trained again"
        )
        raise StateError(f"is gone, and {later} was trained on it", where=str(layout.stage(folders[first])), fix=fix)


def share(layout: RunLayout, parent: RunLayout, folders: Sequence[str], *, tasks: Collection[str]) -> None:
    """Refer to stages of another run, and take over gates' records, scores on some tasks and large tensors of methods.

    References lead to the run that trained the stage, so they are never longer than one step; they are relative where
    both runs lie in the same folder. Scores are copied, because each run may add to its own. The ledger tells of records
    once the run is there (`mcit.runs.gates.recover`).
    """
    for leftover in (*layout.stages.glob("*.json"), *(layout.root / "gates").glob("*.json")):
        leftover.unlink()  # of a start that was killed
    for folder in folders:
        target = home(parent, folder).resolve()
        beside = target.parent.parent.parent == layout.root.resolve().parent
        named = os.path.relpath(target, layout.stages.resolve()) if beside else str(target)
        record = {"stage": named, "manifest_sha256": sha256_file(target / MANIFEST)}
        if parent.gate(folder).is_file():
            write_bytes(layout.gate(folder), parent.gate(folder).read_bytes())
        write_sealed(layout.reference(folder), record)
    for after in range(len(folders) + 1):
        for task in tasks:
            for path in (parent.evals(after) / task / name for name in _ANSWERS):
                if path.is_file():
                    write_bytes(layout.evals(after) / task / path.name, path.read_bytes())
    blobs = [p for p in parent.blobs.glob("*") if not p.name.startswith(".")]
    for blob in sorted(blobs, key=lambda p: (p.suffix == ".json", p.name)):  # a record makes a blob whole: last
        _link(blob, layout.blobs / blob.name)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy on another file system. Neither is ever written to again."""
    if target.exists():
        return
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            copy_file(source, target)


def users(layout: RunLayout, children: Sequence[Path], folders: Sequence[str]) -> list[str]:
    """Which of some stages are shared with which of some runs, in words."""
    found = []
    for child in children:
        other = RunLayout(child)
        for folder in folders:
            if other.reference(folder).is_file() and not other.stage(folder).is_dir():
                if _read(other.reference(folder))[0].resolve() == layout.stage(folder).resolve():
                    found.append(f"{folder} is shared with {child}")
    return found
