"""Open or create a run directory, check that it is the same run, and put right what a kill left behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mcit.core.errors import Problem, StateError
from mcit.core.files import (
    canonical_json,
    digest_of,
    explained,
    remove,
    remove_temporaries,
    sha256_file,
    write_bytes,
    write_json,
)
from mcit.core.ranks import ONE, Ranks, on_first
from mcit.core.records import Environment, PlanRecord
from mcit.core.schema import NOT_IDENTITY
from mcit.core.stored import MANIFEST, check_manifest, listed_bytes, read_listed, valid, write_sealed
from mcit.core.types import JsonDict, Plan
from mcit.runs import replace, rewrite
from mcit.runs.draft import StageDraft
from mcit.runs.identity import FROZEN, Changes, config_changes, cures, differences, identity, layout_changes, told
from mcit.runs.layout import REMOVED, RunLayout
from mcit.runs.ledger import Ledger
from mcit.runs.lock import RunLock
from mcit.runs.shared import home, shared_from


class Run:
    """One run directory. Writers hold `locked()`; readers need nothing. With several ranks, rank 0 writes."""

    def __init__(self, root: Path, *, ranks: Ranks = ONE) -> None:
        self.layout = RunLayout(Path(root))
        self.ranks = ranks
        self.ledger = Ledger(self.layout.ledger, writes=ranks.rank() == 0)
        self.lock = RunLock(self.layout.lock)
        self.notes: list[str] = []
        """What is different from the last start and allowed to be, for people."""
        self._recovered = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one writer for a block, with what a kill left behind put right first; rank 0 does so for all ranks.

        Raises StateError when another process writes, or when a committed file is missing or was changed.
        """
        with contextlib.ExitStack() as stack:

            def enter() -> None:
                stack.enter_context(self.lock.held())
                if not self._recovered:
                    self.recover()

            on_first(self.ranks, enter)
            yield

    def share(self, ranks: Ranks) -> None:
        """Use this run with several ranks from now on."""
        self.ranks = ranks
        self.ledger = Ledger(self.layout.ledger, writes=ranks.rank() == 0)

    # ---- what is there ----------------------------------------------------------------------------------------------
    def config(self) -> JsonDict:
        """The resolved config. Raises StateError when it was edited."""
        self._check_root_files()
        return _read_yaml(self.layout)

    def plan(self) -> JsonDict:
        """Content of plan.json. Raises StateError when it is missing or damaged."""
        return read_plan(self.layout)

    def stage_folders(self) -> list[str]:
        """Folder names of all planned stages, in order."""
        return [str(stage["folder"]) for stage in self.plan()["stages"]]

    def is_committed(self, folder: str) -> bool:
        """Whether a stage is whole, here or where it is shared from. Raises StateError when it is there but damaged."""
        path = home(self.layout, folder)
        if path.is_dir() and not (path / MANIFEST).is_file():
            raise _broken(path / MANIFEST, "a committed stage has no manifest")
        return path.is_dir()

    def committed(self) -> list[str]:
        """Folder names of committed stages, in order."""
        if not self.layout.stages.is_dir():
            return []
        own = {p.name for p in self.layout.stages.iterdir() if p.is_dir() and not p.name.startswith(".")}
        shared = {p.stem for p in self.layout.stages.glob("[!.]*.json")}
        return [name for name in sorted(own | shared) if self.is_committed(name)]

    def finished(self) -> bool:
        """Whether every planned stage is committed."""
        from mcit.runs.gates import rejected

        without = rejected(self)
        return all(folder in without or self.is_committed(folder) for folder in self.stage_folders())

    def live_step(self, folder: str) -> int | None:
        """Step of the newest live checkpoint of a draft; None when there is no draft, 0 without a checkpoint."""
        if not self.layout.draft(folder).is_dir():
            return None
        whole = [p.parent.name for p in self.layout.lives(folder).glob(f"*/{MANIFEST}")]
        return max((int(name) for name in whole if name.isdigit()), default=0)

    def verify(self, folder: str) -> None:
        """Compare every file of a committed stage with its manifest.

        Raises StateError naming the file that is missing, was cut off, was edited or does not belong there.
        """
        check_manifest(home(self.layout, folder))

    def stage(self, folder: str) -> Path:
        """Where the files of a committed stage are: in this run, or in the one it is shared from."""
        return home(self.layout, folder)

    def draft(self, folder: str, *, keep: int = 2, final: Path | None = None) -> StageDraft:
        """The draft of a stage that is not committed, to be entered with ``with``; a commit goes to `final`, if given."""
        return StageDraft(self.layout, folder, ledger=self.ledger, keep=keep, ranks=self.ranks, final=final)

    def tell_owners(self, folders: Sequence[str]) -> None:
        """Note in every run that holds a shared stage where this run is, so that a rollback there can refuse."""
        for owner in sorted({found for folder in folders if (found := shared_from(self.layout, folder))}):
            path = os.path.relpath(self.layout.root.resolve(), owner.resolve())
            ledger = Ledger(RunLayout(owner).ledger)
            if path not in [event["run"] for event in ledger.events("branched")]:
                ledger.append("branched", run=path, stages=len(folders))

    # ---- at each start ----------------------------------------------------------------------------------------------
    def recover(self) -> None:
        """Check committed stages byte by byte, add missing ledger lines, remove what interrupted writes left.

        Call it under the lock. Raises StateError naming the file that is missing or was changed.
        """
        rewrite.finish(self.layout)
        replace.finish(self.layout)
        self._check_root_files()
        self.notes += [f"{self.layout.ledger}: {what}" for what in self.ledger.recover()]
        self._settle()
        from mcit.runs.gates import stage_in

        noted, planned = self._noted(), self.stage_folders()
        for folder in planned:
            if folder in noted and not self.is_committed(folder):
                self.notes.append(f"{self.layout.stage(folder)}: was committed and is gone; it is trained again")
        for folder in self.committed():
            self.verify(folder)
            if folder not in noted and self.layout.stage(folder).is_dir():
                self.ledger.append("stage_committed", stage=folder, recovered=True)
        for folder in planned:
            whole = self.is_committed(folder) or stage_in(self.layout.candidate(folder)).is_dir()
            if whole and self.layout.draft(folder).exists():
                shutil.rmtree(self.layout.draft(folder), ignore_errors=True)
        remove_temporaries(self.layout.root)
        for leftover in (*self.layout.root.glob(f".*{REMOVED}"), *self.layout.root.glob(f"*/.*{REMOVED}")):
            remove(leftover)
        self._recovered = True

    def _settle(self) -> None:
        """Decisions of gates whose folders were not moved yet."""
        from mcit.runs.gates import recover

        recover(self)

    def _noted(self) -> set[str]:
        """Stages whose commit is in the ledger and was not taken back since."""
        noted: set[str] = set()
        for event in self.ledger.events():
            if event["event"] == "stage_committed":
                noted.add(str(event.get("stage")))
            elif event["event"] == "created":
                noted.update(map(str, event.get("shared", [])))
            elif event["event"] == "rollback":
                noted -= set(map(str, event["removed"]))
        return noted

    def _check_root_files(self) -> None:
        for path in root_files(self.layout):
            listed_bytes(root_of(self.layout), path.name)

    def create(
        self,
        *,
        config_text: str,
        resolved: JsonDict,
        plan_json: JsonDict,
        environment: JsonDict,
        begun: JsonDict | None = None,
    ) -> None:
        """Write the files of a new run; the manifest comes last and makes it one. `begun` goes to the ledger before it."""
        layout = self.layout
        valid(Environment, environment, where=layout.environment)
        for name, data in plan_files(config_text, resolved, plan_json).items():
            write_bytes(layout.root / name, data)
        write_json(layout.environment, environment)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in root_files(layout)}
        layout.stages.mkdir(exist_ok=True)
        told = {"name": plan_json["name"], "digest": plan_json["digest"], **(begun or {})}
        told["files"] = {name: entry["sha256"] for name, entry in files.items()}
        if not any(
            event.items() >= told.items() for event in self.ledger.events("created")
        ):  # of a start that was killed
            self.ledger.append("created", **told)
        write_sealed(layout.manifest, {"files": files})

    def check_same(
        self, *, resolved: JsonDict, plan_json: JsonDict, environment: JsonDict, accept_changes: bool
    ) -> None:
        """Compare a new start with what the run was created with, changes accepted earlier included.

        Raises StateError naming every difference, unless `accept_changes`: then they go to the ledger, but those of gates.
        """
        if self.plan()["digest"] != plan_json["digest"]:
            raise self._another(plan_json["digest"])
        changes = differences(self.identity(), identity(plan_json, environment))
        refused = {k: pair for k, pair in changes.items() if not accept_changes or k.startswith(FROZEN)}
        if refused:
            root = str(self.layout.root)
            fixes = cures(refused, f"go on with: mcit resume {shlex.quote(root)} --accept-changes")
            found = [f"changed since the run began: {text}" for text in told(refused)]
            raise StateError.of([Problem(root, what, fix) for what, fix in zip(found, fixes, strict=True)])
        if changes:
            self.ledger.append("accepted_changes", changes=changes)
            self.notes += [f"accepted: {text}" for text in told(changes)]
        self.note_layout(resolved, environment)

    def identity(self) -> dict[str, Any]:
        """What must be equal at every start, by key: as recorded, with the changes that were accepted since."""
        known = identity(self.plan(), self.environment())
        for event in self.ledger.events("accepted_changes"):
            changes = {key: pair[1] for key, pair in event["changes"].items() if not key.startswith(FROZEN)}
            known.update(changes)  # an older mcit let thresholds in
        return known

    def environment(self) -> JsonDict:
        """Versions and devices of the first start. Raises StateError when the file is missing or damaged."""
        return read_listed(root_of(self.layout), self.layout.environment.name, Environment)

    def _another(self, digest: str) -> StateError:
        """The error for a config that this folder was not made for."""
        root = self.layout.root
        if any(event["digest"] == digest for event in self.ledger.events("extended")):
            what, fix = (
                "the run of this config was extended since",
                f"continue it with: mcit resume {shlex.quote(str(root))}",
            )
            return StateError(what, where=str(root), fix=f"{fix}; for the shorter sequence change `name:`")
        return StateError("the folder holds another run", where=str(root), fix="change `name:` in the config")

    def note_layout(self, resolved: JsonDict, environment: JsonDict) -> None:
        """Write to the ledger what may differ between two starts and does."""
        recorded = self.environment()
        changes: Changes = layout_changes(_read_yaml(self.layout), resolved)
        changes.update({f"environment.{k}": pair for k, pair in differences(recorded, environment).items()})
        before = self.ledger.events("layout")
        last = before[-1]["changes"] if before else {}
        if {k: list(pair) for k, pair in changes.items()} != last:
            self.ledger.append("layout", changes=changes)
        self.notes += [f"differs from the first start: {text}" for text in told(changes)]


def plan_files(config_text: str, resolved: JsonDict, plan_json: JsonDict) -> dict[str, bytes]:
    """Names and bytes of the root files that say what a run is to do. Raises StateError for a plan that lacks something."""
    valid(PlanRecord, plan_json, where="plan.json")
    return {
        "config.yaml": config_text.encode(),
        "resolved.yaml": yaml.safe_dump(resolved, sort_keys=True, allow_unicode=True).encode(),
        "plan.json": (canonical_json(plan_json, indent=1) + "\n").encode(),
    }


def root_files(layout: RunLayout) -> tuple[Path, ...]:
    """The files every run has from its creation."""
    return layout.config, layout.resolved, layout.plan, layout.environment


def read_plan(layout: RunLayout) -> JsonDict:
    """Content of plan.json. Raises StateError when there is none, or when it was cut off or edited."""
    return read_listed(root_of(layout), layout.plan.name, PlanRecord)


def root_of(layout: RunLayout) -> Path:
    """Where the root files hold: an extension that was decided on counts before it is moved in."""
    if layout.extension.is_dir():
        return layout.extension
    if not layout.manifest.is_file():
        raise _broken(layout.manifest, "file is missing: this is no run directory, or it was never finished")
    return layout.root


def open_run(
    plan: Plan,
    *,
    runs_dir: Path,
    config_text: str,
    resolved: JsonDict,
    plan_json: JsonDict,
    environment: JsonDict,
    accept_changes: bool = False,
    new: bool = False,
    root: Path | None = None,
    prepare: Callable[[Run], JsonDict] | None = None,
) -> Run:
    """Continue the run of this plan (in `root`, if known), or create it; `prepare` puts something into a new one.

    Raises StateError when the run on disk is damaged, locked or differs, or when `runs_dir` holds an unfinished run of
    the same name with another config and `new` is not set.
    """
    runs_dir = Path(runs_dir)
    run = Run(root) if root else find_run(runs_dir, plan.config.name, plan.digest)
    if not run.layout.manifest.is_file():
        if any(p.is_dir() for p in run.layout.stages.glob("*")):
            raise _broken(run.layout.manifest, "file is missing although the run has stages")
        if not new:
            refuse_unfinished(runs_dir, plan.config.name, digest=plan.digest, resolved=resolved)
    with run.lock.held():
        if run.layout.manifest.is_file():
            run.recover()
            run.check_same(
                resolved=resolved, plan_json=plan_json, environment=environment, accept_changes=accept_changes
            )
            run.tell_owners(run.committed())  # again: it may have been moved
        else:
            with explained(run.layout.root):
                begun = prepare(run) if prepare else {}
                given = {"resolved": resolved, "plan_json": plan_json, "environment": environment}
                run.create(config_text=config_text, begun=begun, **given)
    return run


def find_run(runs_dir: Path, name: str, digest: str) -> Run:
    """The run of a plan: in the folder of its name and digest, or where an extension led to this digest.

    It need not exist yet.
    """
    run = Run(Path(runs_dir) / f"{name}-{digest[:8]}")
    if not run.layout.manifest.is_file():
        for other in find_runs(runs_dir):
            with contextlib.suppress(StateError):  # a damaged run is told by `mcit status`
                if other.plan()["digest"] == digest:
                    return other
    return run


def open_existing(path: Path) -> Run:
    """A run by its folder, its root files checked. Raises StateError when it is none or when they were changed."""
    path = Path(path)
    if not path.is_dir():
        raise StateError("no such folder", where=str(path), fix="name a run: `mcit status` lists them")
    run = Run(path)
    runs = [] if run.layout.manifest.is_file() else find_runs(path)
    if runs:
        some = ", ".join(str(r.layout.root) for r in runs[:3])
        raise StateError("is a folder of runs, no run", where=str(path), fix=f"name one of its {len(runs)}: {some}")
    run.config()
    run.plan()
    return run


def find_runs(runs_dir: Path) -> list[Run]:
    """Every run below a folder, by name."""
    if not Path(runs_dir).is_dir():
        return []
    folders = sorted(Path(runs_dir).glob("[!.]*"))
    return [Run(p) for p in folders if RunLayout(p).manifest.is_file()]


def refuse_unfinished(runs_dir: Path, name: str, *, digest: str, resolved: JsonDict) -> None:
    """Raise StateError when an unfinished run of this name has another config: it would be left behind unnoticed."""
    problems = []
    for other in find_runs(runs_dir):
        try:
            stored = other.plan()
            if stored["name"] != name or stored["digest"] == digest or other.finished():
                continue
            changed = told(config_changes(_read_yaml(other.layout), resolved))
        except StateError:
            continue  # a damaged run is told by `mcit status`, it must not stop another one
        fix = "restore the config to continue it, change `name:`, or give --new to start beside it"
        shown = "; ".join(changed) or "the way it is resolved"
        problems.append(Problem(str(other.layout.root), f"an unfinished run of the same name differs in {shown}", fix))
    if problems:
        raise StateError.of(problems)


def config_digest(resolved: JsonDict) -> str:
    """Digest of the part of a resolved config that is identity."""
    return digest_of({key: value for key, value in resolved.items() if key not in NOT_IDENTITY})


def _broken(path: Path, what: str) -> StateError:
    return StateError(what, where=str(path), fix="restore the file from a copy, or remove the folder and run again")


def _read_yaml(layout: RunLayout) -> JsonDict:
    try:
        found = yaml.safe_load(listed_bytes(root_of(layout), layout.resolved.name))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise _broken(layout.resolved, "cannot be read as a config")
    return found
