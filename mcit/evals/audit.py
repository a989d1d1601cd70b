"""Audit of a run: ledger, plan, stages, gates, certificates, exports, signature; computed again from files, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mcit.core.errors import McitError, Problem, StateError
from mcit.core.files import sha256_file
from mcit.core.records import CertificateRecord, ExportRecord, GateRecord, RequestRecord
from mcit.core.stored import MANIFEST, check_manifest, read_sealed
from mcit.core.types import JsonDict
from mcit.evals.certificate import NOT_ISSUED, certificate, is_old
from mcit.runs.chain import Chain, read_chain
from mcit.runs.gates import decision_line, logged_decision, read_gate, stage_in
from mcit.runs.replace import CERTIFICATE, FEATURES
from mcit.runs.run import Run, root_files, root_of
from mcit.runs.signature import check_signature

_EXPORT = "export.json"
_LIMIT = ("metric", "task", "unit", "at_least", "at_most", "first")
"""Of a threshold, in plan.json and in the record of its gate."""


@dataclass
class Part:
    """One part of an audit."""

    name: str
    checked: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    """What could not be checked, and why that is in order."""

    def check(self, work: Callable[[], Iterator[Problem] | None]) -> None:
        """Count one thing and note what is wrong with it."""
        self.checked += 1
        try:
            self.problems += work() or ()
        except McitError as error:
            self.problems += error.problems
        except FileNotFoundError as error:
            self.problems.append(Problem(str(error.filename), "file is missing", "restore it from a copy"))


def audit(run: Run, *, key: Path | None = None) -> list[Part]:
    """Every part with what is wrong; nothing is changed. With a public `key` a signature has to be there and be of that key."""
    ledger, chain = Part("ledger"), Chain()
    try:
        chain = read_chain(run.layout.ledger)
        ledger = Part("ledger", len(chain.lines), chain.problems)
    except StateError as error:
        ledger = Part("ledger", 0, list(error.problems))
    plan, stages, gates = Part("plan"), Part("stages"), Part("gates")
    certificates, exports = Part("certificates"), Part("exports")
    plan.check(lambda: _root(run, chain, plan.notes))
    if run.layout.replacing.is_dir():
        stages.check(lambda: iter([_pending(run)]))
    for folder in run.stage_folders():
        stages.check(lambda folder=folder: _stage(run, folder))  # type: ignore[misc]
        for kept in map(stage_in, (run.layout.candidate(folder), run.layout.aside(folder))):
            if kept.is_dir():
                stages.check(lambda kept=kept: _kept(kept))  # type: ignore[misc]
        if run.layout.gate(folder).is_file() or logged_decision(chain.whole, folder):
            gates.check(lambda folder=folder: _gate(run, chain, folder, gates.notes))  # type: ignore[misc]
        if run.layout.certificate(folder).is_file() or _was_certified(chain, folder):
            certificates.check(lambda folder=folder: _certificate(run, chain, folder))  # type: ignore[misc]
    logged = {str(event["certificate"]): event for event in chain.whole if event["event"] == "forgotten"}
    for name in sorted({*logged, *(path.name for path in run.layout.requests())}):
        certificates.check(lambda name=name: _request(run, logged, name))  # type: ignore[misc]
    for path in _exports(run, chain):
        exports.check(lambda path=path: _export(chain, path))  # type: ignore[misc]
    parts = [ledger, plan, stages, gates, certificates, exports]
    statement = run.layout.certificates / "statement.json"
    if key is not None or statement.is_file():
        signed = Part("signature")
        signed.check(lambda: check_signature(run, chain, key=key))
        parts.append(signed)
    return parts


def _pending(run: Run) -> Problem:
    what = "a request to forget was stopped while its new files were moved in"
    return Problem(str(run.layout.replacing), what, "the same mcit forget, or mcit resume RUN, finishes it")


def _root(run: Run, chain: Chain, notes: list[Problem]) -> Iterator[Problem]:
    """Root files, with the thresholds frozen in them, against what the ledger says that the run was begun or extended with."""
    said = [e for e in chain.whole if e["event"] in ("created", "extended") and "recovered" not in e]
    if not said or "files" not in said[-1]:
        what = "not compared with the ledger, which has no checksums of them: an older mcit wrote it, or its beginning is lost"
        notes.append(Problem("root files of the run", what, level="note"))
        return
    now = {path.name: sha256_file(root_of(run.layout) / path.name) for path in root_files(run.layout)}
    wrong = _apart(now, said[-1]["files"])
    if not wrong:
        return
    if len(said) > 1 and said[-1]["event"] == "extended" and now == said[-2].get("files"):
        later = chain.whole[chain.whole.index(said[-1]) :]
        if not {e.get("stage") for e in later if e["event"] == "stage_started"} - {*run.stage_folders()}:
            what = "is as before the extension that the ledger tells of last: it was stopped before it began"
            notes.append(Problem(str(run.layout.plan), what, level="note"))
            return
    for name in wrong:
        what = "is not the file that the ledger says the run was begun or extended with"
        yield Problem(str(run.layout.root / name), what, "restore it and manifest.json from a copy")


def _stage(run: Run, folder: str) -> None:
    if run.is_committed(folder):
        run.verify(folder)


def _kept(stage: Path) -> None:
    check_manifest(stage)


def _gate(run: Run, chain: Chain, folder: str, notes: list[Problem]) -> Iterator[Problem]:
    """The record of a gate against the ledger, what plan.json froze, and the stage that it judged."""
    record, path = read_gate(run.layout, folder), run.layout.gate(folder)
    logged, line = logged_decision(chain.whole, folder), decision_line(chain.whole, folder) or {}
    if record is None:
        what = f"is gone, and the ledger says that the stage was decided on ({logged})"
        yield Problem(str(path), what, GateRecord.fix)
        return
    if logged != record["decision"]:
        what = f"says {record['decision']}, and the ledger says {logged or 'nothing of it'}"
        fix = "after a kill the next command on the run adds the line; else restore it from a copy"
        yield Problem(str(path), what, fix)
    elif "sha256" not in line:
        what = "compared with the ledger by its decision alone: an older mcit wrote the line, without a checksum"
        notes.append(Problem(str(path), what, level="note"))
    elif line["sha256"] != sha256_file(path):
        yield Problem(str(path), "is not the record that the ledger says was written", GateRecord.fix)
    frozen = next(stage for stage in run.plan()["stages"] if stage["folder"] == folder).get("gate") or {}
    limits = [{key: limit.get(key) for key in _LIMIT} for limit in frozen.get("thresholds", [])]
    judged = [{key: result[key] for key in _LIMIT} for result in record["results"]]
    if record["gate_sha256"] != frozen.get("sha256") or judged != sorted(limits, key=lambda limit: not limit["first"]):
        yield Problem(str(path), "judges by other thresholds than plan.json has frozen", GateRecord.fix)
    aside = stage_in(run.layout.aside(folder))
    own = run.layout.stage(folder) if record["decision"] == "promoted" else aside
    replaced = any(event["event"] == "replaced" for event in chain.whole)
    if own.is_dir() and not replaced and sha256_file(own / MANIFEST) != record["stage_sha256"]:
        yield Problem(str(own), "is another stage than the one that was judged", "restore it from a copy")


def _was_certified(chain: Chain, folder: str) -> bool:
    """Whether a certificate was issued that no rollback removed."""
    found = False
    for event in chain.whole:
        if event["event"] == "certified" and event.get("stage") == folder:
            found = True
        elif event["event"] == "rollback" and folder in event["removed"]:
            found = False
    return found


def _certificate(run: Run, chain: Chain, folder: str) -> Iterator[Problem]:
    path = run.layout.certificate(folder)
    if not path.is_file():
        fix = "restore it from a copy; else the next command on the run issues one anew: mcit resume RUN"
        yield Problem(str(path), "is gone, and the ledger says that it was issued", fix)
        return
    found, where = read_sealed(path, CertificateRecord), str(path)
    if found["run"] != chain.run:
        yield Problem(where, "is a certificate of another run", "restore this run's own from a copy")
        return
    if found["stage"] != folder:
        yield Problem(where, f"is the certificate of stage {found['stage']}", "restore the stage's own from a copy")
        return
    if is_old(run, chain.whole, folder):
        what = "is older than what the ledger says was done to the stage since: a command was stopped before its end"
        yield Problem(where, what, "run that command again, or: mcit resume RUN")
        return
    issued = [e for e in chain.whole if e["event"] == "certified" and e.get("stage") == folder]
    if not issued or issued[-1].get("sha256") != sha256_file(path):
        yield Problem(where, NOT_ISSUED, CertificateRecord.fix)
    now = certificate(run, folder)
    wrong = [name for name in now if name != "issued" and now[name] != found[name]]
    if wrong:
        parts = [[f"{n}.{k}" for k in _apart(now[n], found[n])] if isinstance(now[n], dict) else [n] for n in wrong]
        named = ", ".join(name for part in parts for name in part)
        yield Problem(where, f"does not say what the run's files say: {named}", "restore the files from a copy")


def _request(run: Run, logged: Mapping[str, JsonDict], name: str) -> Iterator[Problem]:
    """Of a request to forget rows; one of an older mcit has no checksum in the ledger, and none of its features."""
    path = run.layout.certificates / name / CERTIFICATE
    found, features = read_sealed(path, RequestRecord), path.with_name(FEATURES)
    if name not in logged:
        yield Problem(str(path), "is the certificate of a request that the ledger does not know", "remove its folder")
    elif logged[name].get("sha256") not in (None, sha256_file(path)):
        yield Problem(str(path), "is not the certificate that the ledger says was issued", RequestRecord.fix)
    if found.get("features_sha256") not in (None, sha256_file(features)):
        yield Problem(str(features), "is not the file that its certificate names", RequestRecord.fix)


def _apart(now: JsonDict, then: JsonDict) -> list[str]:
    return [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]


def _exports(run: Run, chain: Chain) -> list[Path]:
    """Exports in the run, and those elsewhere that the ledger names and that are still there."""
    inside = {p.resolve(): p for p in sorted(run.layout.exports.glob("[!.]*")) if p.is_dir()}
    named = [run.layout.root / str(e["out"]) for e in chain.whole if e["event"] == "export"]
    outside = {p.resolve(): p for p in named if (p / _EXPORT).is_file()}
    return [*inside.values(), *(path for place, path in outside.items() if place not in inside)]


def _export(chain: Chain, folder: Path) -> Iterator[Problem]:
    check_manifest(folder, name=_EXPORT, model=ExportRecord, unlisted=True)
    if sha256_file(folder / _EXPORT) not in [e.get("sha256") for e in chain.whole if e["event"] == "export"]:
        fix = "the same mcit export checks it and adds its line; or remove the folder and export again"
        yield Problem(str(folder), "is no export that the ledger knows", fix)
