"""Certificates of stages that stand: what a stage was asked, did, broke and stands on, in one file.

Fields F1 to F7 follow the survey "Memory in large language models" (arXiv:2509.18868, chapter 5), adapted to a stage of
training. A certificate is a pure function of the run's files, so that an audit computes it again and compares.

Whatever changes these files has its line in the ledger first: after a kill in between the certificate is known to be old.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mcit.core.errors import StateError
from mcit.core.files import canonical_json, digest_of, sha256_bytes, sha256_file, write_bytes
from mcit.core.records import CertificateRecord, LineageRecord, Manifest, ProgressRecord
from mcit.core.stored import MANIFEST, read_listed, read_sealed, seal, valid
from mcit.core.types import FORGET_DATA, JsonDict
from mcit.evals.score import SCORE, read_score
from mcit.evals.slices import slice_report
from mcit.runs.gates import read_gate, rejected, slices_of, standing_digest
from mcit.runs.run import Run

_TIMED = {"time", "issued", "run"}
"""Fields that differ where the same stage is trained again."""
_HOLD_TIMES = {"manifest_sha256", "manifests_sha256", "stage_sha256", "before_sha256", "time"}
"""The same inside other fields: a manifest lists ``progress.json``, which has seconds."""

NOT_ISSUED = "is not the certificate that the ledger says was issued last"


def certify(run: Run, after: int | None = None) -> list[str]:
    """Issue certificates of standing stages 1..`after`, or anew of those with one, where none is there or the ledger has news;
    with 0, whose scores the first stage is compared with, anew alone.

    One that was edited is left to `mcit audit`: a new one would hide it. Call it under the lock. Returns the stages' folders.
    """
    events, issued = run.ledger.events(), []
    for stage, below in _standing(run):
        path = run.layout.certificate(stage["folder"])
        if (path.is_file() or (after is not None and stage["index"] <= after)) and _due(run, events, stage, below):
            if below is not None:
                run.verify(below["folder"])
            content = certificate(run, stage["folder"])
            data = (canonical_json(seal(content), indent=1) + "\n").encode()
            run.ledger.append("certified", stage=stage["folder"], id=content["id"], sha256=sha256_bytes(data))
            write_bytes(path, data)
            issued.append(stage["folder"])
    return issued


def read_certificates(run: Run) -> list[JsonDict]:
    """Those of standing stages, in order. Raises StateError for a damaged one, and for one that is not what the ledger says.

    What a ledger does not say that lost lines is left to `mcit audit`, which names them.
    """
    paths = {stage["folder"]: run.layout.certificate(stage["folder"]) for stage, _ in _standing(run)}
    there = {folder: path for folder, path in paths.items() if path.is_file()}
    events, damaged = run.ledger.read() if there else ([], [])
    first = next((event for event in events if event["event"] == "created"), {})
    out = []
    for folder, path in there.items():
        found = read_sealed(path, CertificateRecord)
        issued = [e for e in events if e["event"] == "certified" and e.get("stage") == folder and "sha256" in e]
        if not damaged and "recovered" not in first and found["run"] != first.get("id", ""):
            raise StateError("is a certificate of another run", where=str(path), fix=CertificateRecord.fix)
        if not damaged and issued and issued[-1]["sha256"] != sha256_file(path):
            raise StateError(NOT_ISSUED, where=str(path), fix=CertificateRecord.fix)
        out.append(found)
    return out


def certificate(run: Run, folder: str) -> JsonDict:
    """What the files of a run say of a stage. Raises StateError for damaged ones, and for a stage that does not stand."""
    stage, below = _pair(run, folder)
    config, plan, home = run.config(), run.plan(), run.stage(folder)
    given, mode = config["stages"][stage["index"] - 1], plan["scorer_mode"]
    evals, before = run.layout.evals(stage["index"]), run.layout.evals(below["index"] if below else 0)
    measures = slice_report(before, evals, slices_of(stage, plan["stages"], rejected(run)), mode=mode).json()
    lineage = read_listed(home, "lineage.json", LineageRecord)
    files = read_sealed(home / MANIFEST, Manifest)["files"]
    left = {name: entry for name, entry in files.items() if name.startswith("methods/")}
    named = [recipe for key in ("recipe", *FORGET_DATA) for recipe in _list(given.get(key, []))]
    known = run.identity()
    recipes = {name: known[f"recipe {name}"] for name in named if f"recipe {name}" in known}
    gate = read_gate(run.layout, folder)
    content: JsonDict = {
        "stage": folder,
        "index": stage["index"],
        "target": {"tasks": stage["tasks"], "forget": stage["forget"], "rows": stage["rows"], "recipes": recipes},
        "time": {
            "began": _when(run, "stage_started", folder),
            "ended": _when(run, "stage_committed", folder),
            "seconds": read_listed(home, "progress.json", ProgressRecord)["seconds"],
            "valid": "as long as this stage and those below it are the ones named here",
        },
        "method": {"settings": given, "steps": stage["steps"], "carry": stage["carry"], "hooks": stage["hooks"]},
        "verification": {"mode": mode, **{name: found for name, found in measures.items() if name != "retention"}},
        "regression": {"retention": measures["retention"], "scores": _scores(run, stage["index"])},
        "rollback": {
            "stage": below["folder"] if below else None,
            "weights": _weights(run, below["folder"]) if below else lineage["base_sha256"],
            "manifests_sha256": standing_digest(run, stage["index"]),
            "restore_test": "every file of it matched its manifest when this was issued" if below else "the base",
        },
        "audit": {
            "code": plan["code"],
            "versions": run.environment()["versions"],
            "sources": plan["sources"],
            "seed": config["seed"],
            "stage_seed": stage["seed"],
            "weights": lineage["digest"],
            "data": digest_of(recipes),
            "method_state": digest_of({name: entry["sha256"] for name, entry in left.items()}),
            "method_state_bytes": sum(entry["bytes"] for entry in left.values()),
            "manifest_sha256": sha256_file(home / MANIFEST),
            "gate": gate,
            "approved_by": gate["by"] if gate else None,
        },
    }
    content["id"] = digest_of(timeless(content))
    first = next((event for event in run.ledger.events("created") if "id" in event), {})
    content |= {"run": first.get("id", ""), "issued": datetime.now(UTC).isoformat(timespec="seconds")}
    return valid(CertificateRecord, content, where=run.layout.certificate(folder))


def timeless(value: Any) -> Any:
    """A certificate, or a part of it, without what differs where the same stage is trained again."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in _TIMED | _HOLD_TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


# ---- as a table ------------------------------------------------------------------------------------------------------
HEAD = (
    "stage", "success", "generalisation", "locality", "drawdown, points", "in the right form", "gate", "certificate",
)  # fmt: skip
"""Titles of the columns of `card_rows`."""


def card_rows(certificates: Sequence[JsonDict]) -> list[list[str]]:
    """The minimal evaluation card: measures with 95 % intervals and rows, the gate's verdict, and the certificate's id."""
    out = []
    for one in certificates:
        found, gate, scores = one["verification"], one["audit"]["gate"], one["regression"]["scores"]
        own = [scores[task]["format_validity"] for task in one["target"]["tasks"] if task in scores]
        judged = f"{gate['verdict']}; {gate['decision']} by {gate['by']}" if gate else "none"
        out.append(
            [
                one["stage"],
                *(_shown(found[name], ".3f") for name in ("success", "generalisation", "locality")),
                _shown(found["drawdown_points"], ".2f"),
                f"{sum(own) / len(own):.2f}" if own else "–",
                judged,
                f"`{one['id'][:16]}`",
            ]
        )
    return out


def _shown(measure: JsonDict | None, form: str) -> str:
    if measure is None:
        return "–"
    low, high = measure["interval"]
    return f"{measure['estimate']:{form}} ({low:{form}} to {high:{form}}), n {measure['n']}"


# ---- inside ----------------------------------------------------------------------------------------------------------
def _standing(run: Run) -> list[tuple[JsonDict, JsonDict | None]]:
    """Stages that are committed and were not rejected, each with the one below it."""
    without = rejected(run)
    stages = [s for s in run.plan()["stages"] if s["folder"] not in without and run.is_committed(s["folder"])]
    return list(zip(stages, [None, *stages], strict=False))


def _pair(run: Run, folder: str) -> tuple[JsonDict, JsonDict | None]:
    for stage, below in _standing(run):
        if stage["folder"] == folder:
            return stage, below
    raise StateError("the stage is not there", where=str(run.stage(folder)), fix="restore it from a copy")


def is_old(run: Run, events: Sequence[JsonDict], folder: str) -> bool:
    """Whether the certificate of a stage that stands is to be issued anew: its run was changed since, as the ledger says."""
    return _due(run, events, *_pair(run, folder))


def _due(run: Run, events: Sequence[JsonDict], stage: JsonDict, below: JsonDict | None) -> bool:
    """Whether there is no certificate, or the ledger says what happened to the stage since this one was issued."""
    folder, path = stage["folder"], run.layout.certificate(stage["folder"])
    if not path.is_file():
        return True
    digest, scored = sha256_file(path), {stage["index"], below["index"] if below else 0}
    issued = [k for k, e in enumerate(events) if e["event"] == "certified" and e.get("sha256") == digest]
    return any(
        (e["event"] == "certified" and e.get("stage") == folder)
        or (e["event"] == "eval" and ("rescored" in e or e.get("after") in scored))
        or e["event"] in ("replaced", "extended", "accepted_changes")
        or (e["event"] in ("stage_committed", "promoted", "gate") and e.get("stage") == folder)
        for e in (events[issued[-1] + 1 :] if issued else ())
    )


def _scores(run: Run, index: int) -> JsonDict:
    """Every task scored after a stage: accuracy in percent by mode, format validity, rows, checksum of the score."""
    out = {}
    for path in sorted(run.layout.evals(index).glob(f"[!.]*/{SCORE}")):
        score = read_score(path.parent)
        if score is not None:
            both = {mode: score[mode]["accuracy"] for mode in ("strict", "fixed")}
            kept = {"format_validity": score["format_validity"], "n": score["n"], "sha256": sha256_file(path)}
            out[path.parent.name] = {**both, **kept}
    return out


def _weights(run: Run, folder: str) -> str:
    return str(read_listed(run.stage(folder), "lineage.json", LineageRecord)["digest"])


def _when(run: Run, event: Any, folder: str) -> str | None:
    times = [e["time"] for e in run.ledger.events(event) if e.get("stage") == folder]
    return times[-1] if times else None


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
