"""Go back to an earlier stage: what came after it is hidden first and deleted then, the last stage first.

At every moment of it the stages that are left are the first ones of the plan, so a kill leaves a run that can be
rolled back further, continued or scored.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from mcit.core.errors import ConfigError, Problem, StateError
from mcit.core.files import explained
from mcit.core.records import CombinationRecord, ExportRecord
from mcit.core.stored import read_sealed
from mcit.runs.gates import rejected
from mcit.runs.layout import COMBINATION, REMOVED
from mcit.runs.run import Run
from mcit.runs.shared import users

EXPORT_RECORD = "export.json"


def rollback(run: Run, to_stage: int) -> list[str]:
    """Remove every stage after `to_stage` (0: all), their scores and exports, and all drafts; call it under the lock.

    Returns what was removed, relative to the run. Raises ConfigError when the run has not come that far.
    """
    check(run, to_stage)
    folders = removed_by(run, to_stage)
    stages = [p.name.removesuffix(".json") for p in folders if p.parent == run.layout.stages and p.name[0] != "."]
    names = [str(p.relative_to(run.layout.root)) for p in folders]
    run.ledger.append("rollback", to_stage=to_stage, removed=sorted(stages), folders=names)
    for path in folders:
        _remove(path)
    return names


def check(run: Run, to_stage: int) -> None:
    """Raise ConfigError unless stages 1..`to_stage` are committed, StateError when another run shares a later one."""
    without = rejected(run)
    open_ones = (k for k, f in enumerate(run.stage_folders()) if f not in without and not run.is_committed(f))
    done = next(open_ones, len(run.stage_folders()))
    if not 0 <= to_stage <= done:
        raise ConfigError(f"stage {to_stage} is not committed", where="--to-stage", fix=f"0 to {done}")
    children = [run.layout.root / event["run"] for event in run.ledger.events("branched")]
    shared = users(run.layout, children, run.stage_folders()[to_stage:])
    if shared:
        fix = "roll that run back first, or remove it"
        raise StateError.of([Problem(str(run.layout.root), text, fix) for text in shared])


def removed_by(run: Run, to_stage: int) -> list[Path]:
    """What a rollback removes, in order: exports, scores, drafts, and the stages from the last one down.

    Of a stage that is shared with another run it is the reference.
    """
    layout, folders = run.layout, run.stage_folders()
    later = folders[to_stage:]
    exports = [p for p in _children(layout.exports) if _last_stage(p, folders) > to_stage]
    scores = [layout.evals(k) for k in range(len(folders), to_stage, -1)]
    scores += [layout.kits(k) for k in range(len(folders), to_stage, -1)]
    scores += [path for folder in later for path in (layout.gold(folder), layout.attacks(folder))]
    scores += [p for p in _children(layout.combinations) if _last_combined(p) > to_stage]
    drafts = [layout.draft(folder) for folder in reversed(folders)]
    stages = [path for folder in reversed(later) for path in (layout.stage(folder), layout.reference(folder))]
    of_stage = (layout.candidate, layout.aside, layout.gate, layout.certificate)
    kept = [place(folder) for folder in later for place in of_stage]
    return [p for p in (*exports, *scores, *drafts, *stages, *kept) if p.exists()]


def _children(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []


def _last_stage(export: Path, folders: list[str]) -> float:
    """The last stage whose weights are in an export, by its record; one that cannot be read counts as the newest."""
    try:
        stages = read_sealed(export / EXPORT_RECORD, ExportRecord)["stages"]
        return max(folders.index(name) + 1 for name in stages)
    except (StateError, ValueError):
        return math.inf


def _last_combined(folder: Path) -> float:
    """The last stage that a scored combination holds; one that cannot be read counts as the newest."""
    try:
        return float(max(read_sealed(folder / COMBINATION, CombinationRecord)["stages"]))
    except StateError:
        return math.inf


def _remove(path: Path) -> None:
    hidden = path.with_name(f".{path.name.lstrip('.')}{REMOVED}")
    with explained(path):
        shutil.rmtree(hidden, ignore_errors=True)
        if path.is_dir():
            os.rename(path, hidden)
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            path.unlink()
