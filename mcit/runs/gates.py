"""Decisions on stages with a gate: what was trained waits beside the run's stages until it is promoted.

The record in ``gates/`` decides; moving folders afterwards may be killed and is finished at the next start. A stage that did
not pass is kept in ``aside/`` and the run stands at the stage before; once it is rejected the sequence goes on without it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, GateStopped, StateError
from mcit.core.files import digest_of, explained, rename_directory, sha256_file
from mcit.core.records import GateRecord, ProgressRecord
from mcit.core.stored import MANIFEST, check_manifest, read_listed, read_sealed, write_sealed
from mcit.core.types import JsonDict
from mcit.runs.layout import RunLayout
from mcit.runs.run import Run
from mcit.runs.shared import shared_from

EVALS = "evals"
"""Scores of a stage that waits or was set aside, beside what a commit holds."""

AUTOMATIC = "gate"
"""Who decides where nobody does."""


def stage_in(place: Path) -> Path:
    """What a commit holds, below the place of a candidate or of a stage set aside: a folder of the stage's own name."""
    return place / place.name


def read_gate(layout: RunLayout, folder: str) -> JsonDict | None:
    """The record of a stage's gate; None if there is none. Raises StateError for a damaged one."""
    path = layout.gate(folder)
    return read_sealed(path, GateRecord) if path.is_file() else None


def rejected(run: Run) -> frozenset[str]:
    """Folders of stages that the sequence goes on without."""
    return rejected_of(run.layout, run.stage_folders()) if (run.layout.root / "gates").is_dir() else frozenset()


def rejected_of(layout: RunLayout, folders: Sequence[str]) -> frozenset[str]:
    """The same of some stages of a run."""
    found = {folder: read_gate(layout, folder) for folder in folders}
    return frozenset(folder for folder, record in found.items() if record and record["decision"] == "rejected")


def standing_of(layout: RunLayout, stages: Sequence[JsonDict]) -> list[JsonDict]:
    """Stages of a plan without those that were rejected; the others keep their numbers."""
    without = rejected_of(layout, [stage["folder"] for stage in stages])
    return [stage for stage in stages if stage["folder"] not in without]


def slices_of(stage: JsonDict, stages: Sequence[JsonDict], without: frozenset[str]) -> JsonDict:
    """The tasks of a planned stage and those of its slices, without what only rejected stages before it trained.

    Such tasks are not scored any more.
    """
    before = [s for s in stages if s["index"] <= stage["index"]]
    lost = {task for s in before if s["folder"] in without for task in s["tasks"]}
    lost -= {task for s in before if s["folder"] not in without for task in s["tasks"]}
    slices = stage.get("slices") or {"neighbourhood": [], "rephrased": [], "retention": []}
    return {"tasks": stage["tasks"], **{key: [t for t in names if t not in lost] for key, names in slices.items()}}


def done_stages(run: Run) -> list[int]:
    """Numbers of the stages that are committed and stand, in order, up to the first that is still to be made."""
    without, done = rejected(run), []
    for number, folder in enumerate(run.stage_folders(), 1):
        if folder in without:
            continue
        if not run.is_committed(folder):
            break
        done.append(number)
    return done


def stage_choice(run: Run, wanted: int | None, *, where: str) -> int:
    """The stage that is meant, 0 for the base: the last that stands where none is named.

    Raises ConfigError for one that is not committed or was rejected at its gate, GateStopped for one that was set aside.
    """
    done = done_stages(run)
    if wanted is None:
        return done[-1] if done else 0
    if wanted not in (0, *done):
        folders = run.stage_folders()
        known = 1 <= wanted <= len(folders)
        if known:
            require_open(run, folders[wanted - 1])
        refused = known and folders[wanted - 1] in rejected(run)
        what = f"stage {wanted} was rejected at its gate" if refused else f"stage {wanted} is not committed"
        raise ConfigError(what, where=where, fix=f"one of {', '.join(map(str, [0, *done]))}")
    return wanted


def frozen_gate(run: Run, folder: str) -> JsonDict | None:
    """The gate of a stage as it was frozen before training; None for a stage without one.

    Raises StateError where the file is another one now.
    """
    stage = next(stage for stage in run.plan()["stages"] if stage["folder"] == folder)
    gate: JsonDict | None = stage.get("gate")
    if gate is None:
        return None
    path = Path(gate["file"])
    now = sha256_file(path) if path.is_file() else "no file"
    if now != gate["sha256"]:
        what = f"the gate of {folder} was frozen with sha256 {gate['sha256'][:12]}…, the file has {now[:12]}…"
        fix = "restore the file: thresholds cannot change once the run is there"
        raise StateError(what, where=str(path), fix=fix)
    return gate


def standing_digest(run: Run, before: int) -> str:
    """Of the manifests of all stages below stage `before` that stand: weights and method state as one unit."""
    folders = [stage["folder"] for stage in run.plan()["stages"] if stage["index"] < before]
    without = rejected(run)
    return digest_of([sha256_file(run.stage(folder) / MANIFEST) for folder in folders if folder not in without])


def conclude(run: Run, folder: str, *, index: int, gate: JsonDict, verdict: str, results: list[JsonDict]) -> JsonDict:
    """Write what a gate found and move the candidate; returns the record."""
    candidate = stage_in(run.layout.candidate(folder))
    check_manifest(candidate)
    record: JsonDict = {
        "stage": folder,
        "index": index,
        "gate_sha256": gate["sha256"],
        "stage_sha256": sha256_file(candidate / MANIFEST),
        "before_sha256": standing_digest(run, index),
        "verdict": verdict,
        "results": results,
        "ended": read_listed(candidate, "progress.json", ProgressRecord).get("ended"),
        "decision": "promoted" if verdict == "pass" else "aside",
        "by": AUTOMATIC,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _decide(run, record)
    _tell(run, "gate", record)
    settle(run, folder)
    return record


def _decide(run: Run, record: JsonDict) -> None:
    path = run.layout.gate(record["stage"])
    with explained(path):
        path.parent.mkdir(exist_ok=True)
    write_sealed(path, record)


def _tell(run: Run, kind: Any, record: JsonDict, **more: Any) -> None:
    """To the ledger what was decided, with the checksum of its record."""
    told = {"stage": record["stage"], **{key: record[key] for key in ("verdict", "decision", "by")}}
    run.ledger.append(kind, **told, sha256=sha256_file(run.layout.gate(record["stage"])), **more)


def settle(run: Run, folder: str) -> None:
    """Bring folders to where the decision wants them; may be killed and called again. Call it under the lock."""
    record, layout = read_gate(run.layout, folder), run.layout
    if record is None:
        return
    waiting, aside = layout.candidate(folder), layout.aside(folder)
    if record["decision"] == "promoted":
        source = waiting if waiting.is_dir() else aside
        if not stage_in(source).is_dir():
            return
        if (source / EVALS).is_dir():
            target = layout.evals(record["index"])
            shutil.rmtree(target, ignore_errors=True)  # half of an earlier move
            with explained(target):
                target.parent.mkdir(exist_ok=True)
                os.rename(source / EVALS, target)
        rename_directory(stage_in(source), layout.stage(folder))
        run.ledger.append("stage_committed", stage=folder)
        shutil.rmtree(source, ignore_errors=True)
    elif waiting.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
        with explained(aside):
            aside.parent.mkdir(exist_ok=True)
        rename_directory(waiting, aside)


def recover(run: Run) -> None:
    """Finish what decisions began before a kill, their lines in the ledger included."""
    events = run.ledger.events()
    for folder in run.stage_folders():
        record, logged = read_gate(run.layout, folder), logged_decision(events, folder)
        if record is None and logged is not None:
            then = (
                "it stands all the same, restore the file from a copy"
                if run.is_committed(folder)
                else "it is trained again"
            )
            what = f"is gone, and the ledger says that the stage was decided on ({logged}); {then}"
            run.notes.append(f"{run.layout.gate(folder)}: {what}")
        if record is not None and logged != record["decision"]:
            why = {"shared": True} if shared_from(run.layout, folder) else {"recovered": True}
            _tell(run, "gate" if record["by"] == AUTOMATIC else record["decision"], record, **why)
        if record is not None:
            settle(run, folder)


def logged_decision(events: Sequence[JsonDict], folder: str) -> str | None:
    """The last decision on a stage that the ledger knows and no rollback took back."""
    line = decision_line(events, folder)
    return None if line is None else line.get("decision", line["event"])


def decision_line(events: Sequence[JsonDict], folder: str) -> JsonDict | None:
    """The line of that decision."""
    found: JsonDict | None = None
    for event in events:
        if event["event"] in ("gate", "promoted", "rejected") and event.get("stage") == folder:
            found = event
        elif event["event"] == "rollback" and f"gates/{folder}.json" in event.get("folders", []):
            found = None
    return found


def require_open(run: Run, folder: str) -> None:
    """Raise GateStopped where a stage waits for a decision."""
    record = read_gate(run.layout, folder)
    if record is not None and record["decision"] == "aside":
        raise stopped(run, record)


def stopped(run: Run, record: JsonDict) -> GateStopped:
    """What to tell of a stage that was set aside."""
    worst = [r for r in scored_of(record["results"]) if r["verdict"] != "pass"]
    said = "; ".join(words(result) for result in worst[:3])
    if record["ended"] is not None and str(record["ended"]["reason"]).startswith("gate: "):
        said = str(record["ended"]["reason"]).removeprefix("gate: ") + (f"; {said}" if said else "")
    more = "more rows may decide it; " if record["verdict"] == "inconclusive" else ""
    home, k = shlex.quote(str(run.layout.root)), record["index"]
    return GateStopped(
        f"gate {record['verdict']}: {said}; the stage is set aside, the run stands at the stage before",
        where=f"stage {record['stage']}",
        fix=f"{more}mcit reject {home} --stage {k} --by NAME goes on without it, mcit promote takes it all the same",
    )


def scored_of(results: Sequence[JsonDict]) -> list[JsonDict]:
    """Thresholds that were looked at: where the first ones do not pass, nothing more is scored."""
    first = [result for result in results if result["first"]]
    return first if any(result["verdict"] != "pass" for result in first) else list(results)


def words(result: JsonDict) -> str:
    """One threshold and what was found."""
    name = result["metric"] + (f" of {result['task']}" if result["task"] else "")
    limit = f"at least {result['at_least']:g}" if result["at_least"] is not None else f"at most {result['at_most']:g}"
    if result["estimate"] is None:
        why = (
            ": too few answers were right before the stage, unit: points needs none"
            if result["unit"] == "relative"
            else ""
        )
        return f"{name} was not measured ({limit} {result['unit']}){why}"
    low, high = result["interval"]
    return f"{name} {result['estimate']:.3f} ({low:.3f} to {high:.3f}), {limit} {result['unit']}: {result['verdict']}"


# ---- by people -------------------------------------------------------------------------------------------------------
def promote(run: Run, stage: int, *, by: str) -> JsonDict:
    """Let a stage that was set aside stand after all. Call it under the lock.

    Raises StateError when the gate file or the stage was changed, or stages below are others; ConfigError when there is nothing
    to decide.
    """
    record = _waiting(run, stage, by)
    folder = record["stage"]
    frozen_gate(run, folder)
    kept = stage_in(run.layout.aside(folder))
    check_manifest(kept)
    if sha256_file(kept / MANIFEST) != record["stage_sha256"]:
        raise StateError("is another stage than the one that was judged", where=str(kept), fix="restore it from a copy")
    if standing_digest(run, stage) != record["before_sha256"]:
        what = "the stages below are others than those it was trained on"
        raise StateError(what, where=str(run.layout.gate(folder)), fix="reject it, and train it again in another run")
    return _by(run, record, "promoted", by)


def reject(run: Run, stage: int, *, by: str) -> JsonDict:
    """Go on without a stage that was set aside; it stays there to be looked at. Call it under the lock."""
    return _by(run, _waiting(run, stage, by), "rejected", by)


def _waiting(run: Run, stage: int, by: str) -> JsonDict:
    if not by.strip():
        raise ConfigError("a decision has a name", where="--by", fix="say who decides: --by NAME")
    if by.strip() == AUTOMATIC:
        raise ConfigError(
            f"'{AUTOMATIC}' is who decides where nobody does", where="--by", fix="say who decides: --by NAME"
        )
    folders = run.stage_folders()
    known = 1 <= stage <= len(folders)
    record = read_gate(run.layout, folders[stage - 1]) if known else None
    if known and record is None and run.layout.aside(folders[stage - 1]).is_dir():
        what = "is gone, and the stage that it set aside is there"
        raise StateError(what, where=str(run.layout.gate(folders[stage - 1])), fix=GateRecord.fix)
    if record is None or record["decision"] != "aside":
        waiting = [
            k for k, f in enumerate(folders, start=1) if (read_gate(run.layout, f) or {}).get("decision") == "aside"
        ]
        fix = f"waiting: {waiting}" if waiting else "no stage of this run waits for a decision"
        raise ConfigError(f"stage {stage} was not set aside by a gate", where="--stage", fix=fix)
    return record


def _by(run: Run, record: JsonDict, decision: str, by: str) -> JsonDict:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {**record, "decision": decision, "by": by.strip(), "time": now}
    _decide(run, record)
    _tell(run, decision, record)
    settle(run, record["stage"])
    return record
