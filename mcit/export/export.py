"""One export: check the run, write into a hidden folder, reload, compare, rename."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcit.core.canaries import planted
from mcit.core.errors import ConfigError, StateError
from mcit.core.files import atomic_directory, canonical_json, remove_temporaries, sha256_file, write_text
from mcit.core.records import ExportRecord
from mcit.core.stored import check_manifest, read_sealed, write_manifest
from mcit.core.types import JsonDict
from mcit.evals.certificate import read_certificates
from mcit.export import adapter, combined, delta, guard, merged, pool
from mcit.export.card import CARD, card
from mcit.export.source import Source, open_source
from mcit.export.verify import probe
from mcit.models.combine import Combination, combined_digest
from mcit.models.load import load_processor, model_config
from mcit.models.text import auto_class_of
from mcit.runs.run import Run

Kind = Literal["adapter", "delta", "merged", "pool", "guard"]
RECORD = "export.json"
"""Base and its checksum, stages, difference, and every file with size and sha256."""


@dataclass(frozen=True)
class Export:
    """A finished export."""

    folder: Path
    record: JsonDict
    made: bool
    """False when the same export was there already."""
    outdated: bool = False
    """The card of what was there is not the one that would be written now: the weights were scored since, for one."""


def export_stage(
    run: Run,
    *,
    stage: int,
    kind: Kind,
    out: Path | None = None,
    max_rank: int | None = None,
    combine: Combination | None = None,
) -> Export:
    """Export stages 1..`stage` of a run, or a combination of some of them, to `out` (below the run's exports by default).

    The same export found in `out` is left as it is, so a killed command can simply be run again. Raises ConfigError for
    `max_rank` with another kind than adapter and for a new folder among the run's own files, StateError when the run was
    changed, when something else is in `out`, or when the reloaded export differs from the trained model; nothing half-written
    stays behind.
    """
    if max_rank is not None and (kind != "adapter" or max_rank < 1):
        raise ConfigError("goes with --as adapter only, and is at least 1", where="--max-rank", fix="leave it out")
    if combine is not None and (kind in ("delta", "pool", "guard") or max_rank is not None):
        raise ConfigError("goes with --as adapter and merged, without --max-rank", where="--combine", fix="choose one")
    source = open_source(run, stage)
    if kind not in ("pool", "guard") and any(delta.carry == "pool" for delta in source.lineage.deltas):
        raise ConfigError("the run keeps a pool of adapters", where=f"--as {kind}", fix="export it with --as pool")
    name = combine.name if combine else run.stage_folders()[stage - 1]
    folder = Path(out) if out is not None else run.layout.exports / f"{name}-{kind}"
    wanted = _wanted(source, kind, max_rank, combine)
    given = dict(zip(run.stage_folders(), run.config()["stages"], strict=True))
    canaries = planted([given[name] for name in wanted["stages"]])
    wanted |= {"canaries": canaries} if canaries else {}
    if folder.exists():
        same = _same(folder, wanted)
        _noted(run, folder, stage=stage, kind=kind)  # unless a kill came before the line
        now = _card(run, source, same, stage=stage, combine=combine)
        return Export(folder, same, made=False, outdated=(folder / CARD).read_text(encoding="utf-8") != now)
    home, inside = run.layout.root.resolve(), folder.resolve()
    if inside.is_relative_to(home) and not inside.is_relative_to(run.layout.exports.resolve()):
        fix = f"use a folder in {run.layout.exports}, or one outside the run"
        raise ConfigError("lies among the run's own files", where=f"--out {folder}", fix=fix)
    remove_temporaries(folder.parent, of=folder.name)
    read_certificates(run)  # the card has them: one that is not this run's is refused before weights load
    batch = probe(load_processor(source.path, trust_remote_code=source.base.trust_remote_code))
    with atomic_directory(folder) as work:
        if combine is not None:
            found = combined.write(source, work, batch, kind=kind, spec=combine)
        elif kind == "adapter":
            found = adapter.write(source, work, batch, max_rank=max_rank)
        elif kind == "pool":
            found = pool.write(source, work, batch, router=(run.config().get("router") or {}).get("use"))
        elif kind == "delta":
            found = delta.write(source, work, batch)
        elif kind == "guard":
            left = [run.stage(name) / "methods" / "guard" for name in wanted["stages"]]
            newest = next((path for path in reversed(left) if path.is_dir()), None)
            found = guard.write(newest, run.config()["eval"]["filters"], work)
        else:
            found = merged.write(source, work, batch)
        record = {**found, **wanted}
        write_text(work / CARD, _card(run, source, record, stage=stage, combine=combine))
        write_manifest(work, name=RECORD, extra=record)
    _noted(run, folder, stage=stage, kind=kind)
    return Export(folder, read_sealed(folder / RECORD, ExportRecord), made=True)


def _card(run: Run, source: Source, record: JsonDict, *, stage: int, combine: Combination | None) -> str:
    """The card with the scores that the run has by now."""
    config = model_config(source.path, trust_remote_code=source.base.trust_remote_code)
    evals = run.layout.combined(combine.name) if combine else run.layout.evals(stage)
    return card(run, record=record, base=source.path, evals=evals, model_class=auto_class_of(config).__name__)


def _noted(run: Run, folder: Path, *, stage: int, kind: Kind) -> None:
    """Tell the ledger of an export, once for each place: with the checksum of its record and where a later audit finds it."""
    root, place = run.layout.root.resolve(), folder.resolve()
    out = str(place.relative_to(root) if place.is_relative_to(root) else place)
    digest = sha256_file(folder / RECORD)
    if (digest, out) not in [(event.get("sha256"), event.get("out")) for event in run.ledger.events("export")]:
        run.ledger.append("export", stage=stage, kind=kind, out=out, sha256=digest)


def _wanted(source: Source, kind: str, max_rank: int | None, combine: Combination | None) -> JsonDict:
    folders, lineage = [item.folder.name for item in source.lineage.deltas], source.lineage.digest
    if combine is not None:
        folders = [folders[source.lineage.position(k)] for k in combine.stages]
        lineage = combined_digest(source.lineage, combine)
    return {
        "kind": kind,
        "run": source.run,
        "base": source.base_name,
        "base_sha256": source.lineage.base_sha256,
        "base_dtype": source.base.dtype,
        "base_adapter": source.base.adapter,
        "stages": folders,
        "lineage": lineage,
        **({"combine": combine.json()} if combine else {}),
        "max_rank": max_rank,
        **({"base_double_quant": source.base.double_quant} if source.base.dtype == "nf4" else {}),
    }


def _same(folder: Path, wanted: JsonDict) -> JsonDict:
    """The record of what is there. Raises StateError when it is something else or was changed."""
    refusal = StateError("already exists", where=str(folder), fix="remove it or choose another folder with --out")
    if not (folder / RECORD).is_file():
        raise refusal
    record = read_sealed(folder / RECORD, ExportRecord)
    if canonical_json({k: record.get(k) for k in wanted}) != canonical_json(wanted):
        raise refusal
    return check_manifest(folder, name=RECORD, model=ExportRecord, unlisted=True)
