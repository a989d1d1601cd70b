"""Go on from stages that are there: add stages to a run, or start another run on the first stages of one.

Both are allowed only where the stages that are taken over are those that the new config would train: same settings,
seed, base, data, versions. What differs before the first new stage is named and refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, McitError, Problem, StateError
from mcit.core.files import sha256_bytes
from mcit.core.types import FORGET_DATA, JsonDict, Plan
from mcit.runs import rewrite
from mcit.runs.identity import Changes, config_changes, cures, differences, identity, told
from mcit.runs.run import Run, find_run, find_runs, open_existing, open_run, plan_files
from mcit.runs.shared import share, shared_from

_SCORED = frozenset({"eval.tasks"})
"""Keys that an extension may change: which tasks are scored changes no stage and no score that is there."""
_OWN = frozenset({"name", "eval"})
"""Sections that a branch may change: it has scores of its own."""
_IN_STAGES = frozenset({"eval.validate_every"})
"""Of these sections, what is computed inside a stage."""

Start = Mapping[str, Any]
"""`config_text`, `resolved`, `plan_json` and `environment` of a start, as `open_run` takes them."""


# ---- more stages in the same run -------------------------------------------------------------------------------------
def extension_changes(old: JsonDict, new: JsonDict) -> Changes:
    """What differs between a resolved config and the one that is to extend it, beside the stages added at the end.

    Empty when `new` begins with all stages of `old` and has at least one more.
    """
    count = len(old["stages"])
    changes = config_changes(old, {**new, "stages": new["stages"][:count]})
    changes = {key: pair for key, pair in changes.items() if key.partition("[")[0] not in _SCORED}
    if not changes and len(new["stages"]) <= count:
        changes["stages"] = (f"{count} stages", f"{len(new['stages'])} stages, none of them new")
    return changes


def extendable(runs_dir: Path, resolved: JsonDict) -> list[Run]:
    """Runs of the config's name that it would extend."""
    return [run for run, changes in _of_name(runs_dir, resolved) if not changes]


def _of_name(runs_dir: Path, resolved: JsonDict) -> Iterator[tuple[Run, Changes]]:
    """Runs of the config's name, and what keeps it from extending them."""
    for run in find_runs(runs_dir):
        try:
            if run.plan()["name"] == resolved["name"]:
                yield run, extension_changes(run.config(), resolved)
        except StateError:
            continue  # a damaged run is told by `mcit status`, it must not stop another one


def _beside(runs_dir: Path, resolved: JsonDict) -> list[str]:
    """A line for each run of the config's name and fewer stages that it does not extend, with what differs."""
    out = []
    for run, changes in _of_name(runs_dir, resolved):
        if changes and len(run.config()["stages"]) < len(resolved["stages"]):
            lines = told(changes)
            more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
            out.append(f"a new run, which does not extend {run.layout.root}: {', '.join(lines[:3])}{more}")
    return out


def open_or_extend(plan: Plan, *, runs_dir: Path, root: Path | None = None, new: bool = False, **start: Any) -> Run:
    """The run of this plan: continued, or a run of fewer stages extended (`root`, or the one in `runs_dir`), or new.

    Raises StateError naming what differs from `root` before the first new stage, or when several runs could be meant.
    """
    if root is not None:
        known = open_existing(root)
        if known.plan()["digest"] == plan.digest:
            return open_run(plan, runs_dir=runs_dir, root=root, **start)
    else:
        there = find_run(runs_dir, plan.config.name, plan.digest).layout.manifest.is_file()
        candidates = [] if there or new else extendable(runs_dir, start["resolved"])
        if not candidates:
            notes = [] if there or new else _beside(runs_dir, start["resolved"])
            run = open_run(plan, runs_dir=runs_dir, new=new, **start)
            run.notes += notes
            return run
        if len(candidates) > 1:
            names = ", ".join(str(run.layout.root) for run in candidates)
            fix = "say which with --extend RUN, or give --new to begin with stage 1"
            raise StateError("several runs could be extended by this config", where=names, fix=fix)
        known = candidates[0]
    extend(known, plan, start)
    return known


def extend(run: Run, plan: Plan, start: Start) -> None:
    """Add the stages at the end of a plan to a run that began with the others; whole or not at all.

    Raises StateError naming every difference before the first of them.
    """
    with run.locked():
        old = run.config()
        changes = told(extension_changes(old, start["resolved"]))
        if changes:
            home = shlex.quote(str(run.layout.root))
            fix = f"restore it, or begin another run on the stages before it: --from {home} --stage K"
            raise _refused(run, "differs before the first new stage", changes, fix)
        _same_world(run, start, stages=len(old["stages"]))
        run.note_layout(start["resolved"], start["environment"])
        before = run.plan()
        files = plan_files(start["config_text"], start["resolved"], start["plan_json"])
        files["environment.json"] = run.layout.environment.read_bytes()
        count = {"from_stages": len(before["stages"]), "to_stages": len(plan.stages)}
        digests = {name: sha256_bytes(data) for name, data in files.items()}
        run.ledger.append("extended", digest=before["digest"], to=plan.digest, **count, files=digests)
        rewrite.prepare(run.layout, files)
        rewrite.finish(run.layout)
        added = ", ".join(stage.folder for stage in plan.stages[len(before["stages"]) :])
        run.notes.append(f"this run of {len(before['stages'])} stages is extended by {added}")


# ---- another run on the first stages ---------------------------------------------------------------------------------
def branch_changes(old: JsonDict, new: JsonDict, *, stages: int) -> Changes:
    """What differs between two resolved configs in their first `stages` stages and in what these depend on."""
    changes = config_changes(*({**config, "stages": config["stages"][:stages]} for config in (old, new)))
    return {k: pair for k, pair in changes.items() if k in _IN_STAGES or k.partition(".")[0] not in _OWN}


def common_stages(run: Run, resolved: JsonDict) -> int:
    """How many first stages of a run are committed and are those of a config."""
    old, done = run.config(), 0
    for count in range(1, min(len(old["stages"]), len(resolved["stages"])) + 1):
        if branch_changes(old, resolved, stages=count) or not run.is_committed(run.stage_folders()[count - 1]):
            break
        done = count
    return done


def open_branch(plan: Plan, parent: Run, *, runs_dir: Path, stages: int | None = None, **start: Any) -> Run:
    """The run of this plan; if it is new, its first `stages` stages are shared with `parent` (all that are equal).

    Raises ConfigError when `parent` has not come that far, StateError naming what differs in these stages.
    """
    resolved = start["resolved"]
    known = find_run(runs_dir, plan.config.name, plan.digest)
    if known.layout.manifest.is_file():
        run = open_run(plan, runs_dir=runs_dir, **start)
        if not any(shared_from(run.layout, stage.folder) for stage in plan.stages):
            run.notes.append("this run is there already and shares no stage; it is continued as it is")
        return run
    count = common_stages(parent, resolved) if stages is None else stages
    folders = parent.stage_folders()
    limit = min(len(parent.committed()), len(plan.stages))
    if not 1 <= count <= limit:
        if stages is None:
            changes = told(branch_changes(parent.config(), resolved, stages=1)) or ["stage 1 is not committed there"]
            raise _refused(parent, "shares no first stage with this config", changes, "run it without --from")
        raise ConfigError(
            f"stage {count} is not committed there, or the config has fewer stages",
            where=f"--stage {count} of {parent.layout.root}",
            fix=f"1 to {limit}" if limit else "run without --from",
        )
    changes = told(branch_changes(parent.config(), resolved, stages=count))
    if changes:
        fix = f"restore it, or share fewer stages: {common_stages(parent, resolved)} are equal"
        raise _refused(parent, f"differs from the config in the first {count} stages", changes, fix)
    _same_world(parent, start, stages=count)
    for folder in folders[:count]:
        parent.verify(folder)

    def prepare(run: Run) -> JsonDict:
        tasks = [*start["plan_json"]["tasks"], *start["plan_json"]["forget_tasks"]]
        share(run.layout, parent.layout, folders[:count], tasks=tasks)
        run.tell_owners(folders[:count])
        return {"parent": str(parent.layout.root), "shared": folders[:count]}

    run = open_run(plan, runs_dir=runs_dir, prepare=prepare, **{**start, "new": True})
    run.notes.append(f"stages {', '.join(folders[:count])} are shared with {parent.layout.root}")
    return run


# ---- both --------------------------------------------------------------------------------------------------------------
def _same_world(run: Run, start: Start, *, stages: int) -> None:
    """Refuse with a StateError where base, data, method state or versions of the first stages are not as recorded."""
    plan, old = start["plan_json"], run.config()
    now = identity({**plan, "stages": plan["stages"][:stages]}, start["environment"])
    later = _used(old["stages"]) - _used(old["stages"][:stages])
    known = {key: value for key, value in run.identity().items() if key in now and key not in later}
    changes = differences(known, {key: value for key, value in now.items() if key in known})
    if changes:
        home = shlex.quote(str(run.layout.root))
        fixes = cures(changes, f"accept it first with: mcit resume {home} --accept-changes")
        problems = zip(told(changes), fixes, strict=True)
        what = "changed since these stages were trained"
        raise StateError.of([Problem(str(run.layout.root), f"{what}: {text}", fix) for text, fix in problems])


def _used(stages: list[JsonDict]) -> set[str]:
    """Keys of an identity that stages of a resolved config bring with their recipes and methods."""
    given = [stage.get(key, []) for stage in stages for key in ("recipe", *FORGET_DATA)]
    recipes = {name for names in given for name in ([names] if isinstance(names, str) else names)}
    methods = {method["name"] for stage in stages for method in stage.get("methods", [])}
    return {f"recipe {name}" for name in recipes} | {f"source of method {name}" for name in methods}


def _refused(run: Run, what: str, changes: list[str], fix: str) -> McitError:
    """One problem per change."""
    return StateError.of([Problem(str(run.layout.root), f"{what}: {text}", fix) for text in changes])
