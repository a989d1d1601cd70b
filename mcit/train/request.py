"""Requests to forget single rows: taken out of every analytic head of a run, with a certificate that they are gone.

Heads are those of routers and of methods (``head`` in their state). Each is afterwards compared with a head that is fitted anew
on the rows that are left, whose features the certificate holds, so that anybody can fit it once more (see
``scripts/verify_certificate.py``). Weights of the language model are not touched: forgetting there is what forget stages do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcit.analytic.head import NAME, RowHead, prompt_states, row_key, unit_features
from mcit.core.errors import ConfigError, DataError, Problem, StateError
from mcit.core.files import NOT_JSON, canonical_json, read_given, read_json, sha256_bytes
from mcit.core.interfaces import Reporter
from mcit.core.records import RequestRecord
from mcit.core.stored import read_sealed, seal
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.core.types import JsonDict, Plan, Row
from mcit.data.collate import collate
from mcit.data.folder import DataFolder
from mcit.engine.forward import run_model
from mcit.evals.certificate import certify
from mcit.models.basefiles import base_digest
from mcit.models.quant import runs_bf16
from mcit.plan.preflight import make_encoder
from mcit.runs.replace import CERTIFICATE, FEATURES, replace_in_stages
from mcit.runs.run import Run
from mcit.runs.shared import shared_from, users
from mcit.train.basemodel import BaseModel, base_identity, load_run_base
from mcit.train.sequence import Session

LIMIT = 1e-10
"""Largest difference of any weight to a head fitted without the rows."""
_NAMED = 20


@dataclass
class StoredHead:
    """A head in a committed stage."""

    stage: str
    home: str
    """Folder of its state, relative to the stage: ``router``, or ``methods/<name>``."""
    record: JsonDict
    """Content of ``state.json``."""
    tensors: dict[str, Tensor]
    head: RowHead

    @property
    def source(self) -> str:
        """What its features are read with: ``base``, or the model after its stage."""
        return "base" if self.home == "router" else f"{self.stage}/{self.home}"

    def files(self, scratch: Path) -> dict[str, bytes]:
        """New content of its files."""
        record = {**self.record, "state": {**self.record["state"], "head": self.head.state()}}
        tensors = {**self.tensors, **{f"{kind}|{NAME}": t for kind, t in self.head.tensors().items()}}
        save_tensors(scratch / "tensors.safetensors", tensors)
        return {
            f"{self.home}/state.json": (canonical_json(record, indent=1) + "\n").encode(),
            f"{self.home}/tensors.safetensors": (scratch / "tensors.safetensors").read_bytes(),
        }


def stored_heads(run: Run) -> list[StoredHead]:
    """Every analytic head of every committed stage of the run itself."""
    found = []
    for folder in run.committed():
        stage = run.stage(folder)
        for path in sorted([*stage.glob("router/state.json"), *stage.glob("methods/*/state.json")]):
            record = read_json(path)
            state = record.get("state", {}).get("head")
            if not isinstance(state, dict) or "rows" not in state:
                continue
            file = path.with_name("tensors.safetensors")
            tensors = dict(load_tensors(file)) if file.is_file() else {}
            head = RowHead.load(state, tensors.get(f"gram|{NAME}"), tensors.get(f"cross|{NAME}"))
            found.append(StoredHead(folder, str(path.parent.relative_to(stage)), record, tensors, head))
    return found


def forget_rows(
    plan: Plan, run: Run, asked: Sequence[Row], *, scratch: Path, reporter: Reporter, device: torch.device | None = None
) -> JsonDict:
    """Take rows out of every analytic head and write the certificate; call it under the lock. Returns the certificate.

    Whole or not at all: nothing is changed when a row was never learned (StateError, all of them named), when it has other
    features now, when a stage is shared with another run, or when a head would differ from its refit by more than LIMIT.
    A request that was made before for the same rows is not made again; what a kill left undone of it is done.
    """
    heads = stored_heads(run)
    if not heads:
        fix = "analytic heads come from the router analytic, or guard with detector: analytic"
        raise ConfigError("the run has no analytic head", where=str(run.layout.root), fix=fix)
    _own_stages(run)
    features = _Features(plan, run, reporter, device)
    keys = [row_key(row) for row in asked]
    where = [row.where for row in asked]
    known = {key for stored in heads for label in stored.head.classes for key in stored.head.rows[label]}
    earlier = None if known.intersection(keys) else _earlier(run, keys)
    if earlier is not None:
        return _ended(run, *earlier, reporter=reporter)
    never = [place for place, key in zip(where, keys, strict=True) if key not in known]
    if never:
        fix = "ask for training rows of stages with an analytic head"
        count = len(never) - _NAMED
        more = [Problem("rows", f"{count} more were never learned", fix)] if count > 0 else []
        raise StateError.of([*(Problem(place, "was never learned", fix) for place in never[:_NAMED]), *more])
    rows = _rows_left(plan, heads, set(keys))
    gone, entries, left = [], [], dict[str, dict[str, Tensor]]()
    reporter.line(
        f"features of {len(asked)} rows to forget, and of {len(rows)} that are left to fit every head once more"
    )
    for stored in heads:
        read = left.setdefault(stored.source, {})
        wanted = {key for known_rows in stored.head.rows.values() for key in known_rows} - read.keys()
        every = {**rows, **dict(zip(keys, asked, strict=True))}
        mine = [key for key in every if key in wanted]
        read.update(zip(mine, features.of([every[key] for key in mine], stored), strict=True) if mine else ())
        here = [k for k, key in enumerate(keys) if stored.head.holds(key)]
        x_ND = torch.stack([read[keys[k]] for k in here]) if here else torch.zeros(0)
        gone.append(stored.head.forget(x_ND, [keys[k] for k in here], [where[k] for k in here]) if here else 0)
    for stored, count in zip(heads, gone, strict=True):
        again = refitted(stored.head, left[stored.source])
        apart = difference(stored.head, again)
        if apart > LIMIT:
            what = f"differs by {apart:.3g} from a head fitted without the rows"
            raise StateError(what, where=f"{stored.stage}/{stored.home}", fix="nothing was changed; report it")
        counted = {label: len(stored.head.rows[label]) for label in stored.head.classes}
        entries.append(
            {"stage": stored.stage, "home": stored.home, "removed": count, "left": counted, "difference": apart}
        )
    certificate: JsonDict = {
        "rows": [{"id": row.id, "task": row.task, "key": key} for row, key in zip(asked, keys, strict=True)],
        "limit": LIMIT,
        "heads": entries,
        "gamma": {f"{s.stage}/{s.home}": s.head.gamma for s in heads},
        "not_covered": sorted(p.name for p in run.layout.exports.glob("*") if p.is_dir()),
    }
    new: dict[str, dict[str, bytes]] = {}
    for stored, count in zip(heads, gone, strict=True):
        if count:
            new.setdefault(stored.stage, {}).update(stored.files(scratch))
    number = max((int(path.name) for path in _requests(run)), default=0) + 1
    folder = run.layout.certificates / f"{number:04d}"
    kept: dict[str, Tensor] = {}
    for stored in heads:  # the newest router holds the rows of all earlier ones
        for label, known_rows in stored.head.rows.items():
            if known_rows and stored.head.ridge is not None:
                x_ND = torch.stack([left[stored.source][key] for key in sorted(known_rows)])
                kept[f"{stored.source}|{label}"] = stored.head.ridge.rounded(unit_features(x_ND))
    save_tensors(scratch / FEATURES, kept)
    features_of_left = (scratch / FEATURES).read_bytes()
    certificate["features_sha256"] = sha256_bytes(features_of_left)
    written = {CERTIFICATE: (canonical_json(seal(certificate), indent=1) + "\n").encode(), FEATURES: features_of_left}
    home = folder.relative_to(run.layout.root)
    replace_in_stages(run.layout, new, certificate={f"{home}/{name}": data for name, data in written.items()})
    return _ended(run, folder, certificate, reporter=reporter)


def _ended(run: Run, folder: Path, certificate: JsonDict, *, reporter: Reporter) -> JsonDict:
    """Certificates of the stages anew, and what the request does not reach."""
    certify(run)
    for name in certificate["not_covered"]:
        reporter.line(f"note: export {name} was written before and still has the old head; export again")
    return {**certificate, "folder": str(folder)}


def _requests(run: Run) -> set[Path]:
    """Folders of all requests, those included that only the ledger still knows."""
    logged = {str(event["certificate"]) for event in run.ledger.events("forgotten")}
    return {*run.layout.requests(), *(run.layout.certificates / name for name in logged if name.isdigit())}


def _earlier(run: Run, keys: Sequence[str]) -> tuple[Path, JsonDict] | None:
    """Folder and certificate of the newest request for these very rows. Raises StateError where one is damaged or gone."""
    for folder in sorted(_requests(run), reverse=True):
        found = read_sealed(folder / CERTIFICATE, RequestRecord)
        if {row["key"] for row in found["rows"]} == set(keys):
            return folder, found
    return None


def refitted(head: RowHead, left: Mapping[str, Tensor]) -> RowHead:
    """A head fitted on the rows that are left, given their features by key."""
    again = RowHead(gamma=head.gamma, bits=head.bits)
    for label in head.classes:
        keys = sorted(head.rows[label])
        if keys:
            again.learn(label, torch.stack([left[key] for key in keys]), keys)
    return again


def difference(head: RowHead, again: RowHead) -> float:
    """Largest difference of any weight of two heads; a class without rows has weights of 0."""
    if head.ridge is None:
        return 0.0
    weight_DK = head.weight()
    other_DK = torch.zeros_like(weight_DK)
    if again.ridge is not None:
        found_DK = again.weight()
        for k, label in enumerate(head.classes):
            if label in again.classes:
                other_DK[:, k] = found_DK[:, again.classes.index(label)]
    return float((weight_DK - other_DK).abs().max()) if weight_DK.numel() else 0.0


def _rows_left(plan: Plan, heads: Sequence[StoredHead], gone: set[str]) -> dict[str, Row]:
    """Rows that some head will still hold, by key. Raises StateError when the data of some is not there."""
    wanted = {key for s in heads for label in s.head.classes for key in s.head.rows[label]} - gone
    found: dict[str, Row] = {}
    tasks = {t.recipe: t for stage in plan.stages for t in (*stage.tasks, *stage.forget) if not t.gone}
    for task in tasks.values():
        for row in DataFolder.open(task.folder).rows("train"):
            key = row_key(row)
            if key in wanted:
                found.setdefault(key, row)
    if len(found) < len(wanted):
        what = (
            f"the data of {len(wanted) - len(found)} learned rows is not there any more, so no head can be fitted again"
        )
        fix = "restore the data folders, or build them again: mcit data build"
        if deleted := _deleted(plan):
            fix = f"restore what was deleted after its request: {deleted}"
        raise StateError(what, where="rows left", fix=fix)
    return {key: found[key] for key in sorted(found)}


def _deleted(plan: Plan) -> str:
    """Recipes of requests whose data were deleted."""
    return ", ".join(dict.fromkeys(task.recipe for stage in plan.stages for task in stage.forget if task.gone))


def _own_stages(run: Run) -> None:
    for folder in run.committed():
        other = shared_from(run.layout, folder)
        if other is not None:
            raise StateError("is shared from another run", where=folder, fix=f"make the request there: {other}")
    children = [run.layout.root / event["run"] for event in run.ledger.events("branched")]
    shared = users(run.layout, children, run.committed())
    if shared:
        raise StateError.of([Problem(str(run.layout.root), text, "remove that run first") for text in shared])


class _Features:
    """Features of rows, one row per pass as they were learned: under the run's base, or under the model after a stage."""

    def __init__(self, plan: Plan, run: Run, reporter: Reporter, device: torch.device | None) -> None:
        wanted = plan.config.engine.device
        cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
        self._where = device or torch.device("cuda" if cuda else "cpu")
        self._bf16 = runs_bf16(plan.config.base.dtype, self._where)
        identity, self._encoder = base_identity(plan, base_digest(plan.model_path)), make_encoder(plan)
        load: Callable[[], Any] = functools.partial(load_run_base, plan, device=self._where, told=reporter.line)
        self._base = BaseModel(identity, self._encoder, load, bf16=self._bf16)
        self._session = Session(plan, run, reporter)
        self._stages = {stage.folder: stage.index for stage in plan.stages}

    def of(self, rows: Sequence[Row], stored: StoredHead) -> list[Tensor]:
        """(D,) fp64 per row, as the head learned them."""
        if stored.source == "base":
            found: dict[int, Tensor] = {}
            passes = self._base.outputs(rows, forward=None, layers=frozenset({"last"}), logits=True, size=1)
            for (place,), batch, out in passes:
                found[place] = prompt_states(out.hidden["last"], batch)[0].double().cpu()
            return [found[k] for k in range(len(rows))]
        layer, mean = str(stored.record["state"]["layer"]), bool(stored.record["state"]["mean"])
        model, out_list = self._session.model_after(self._stages[stored.stage]).eval(), []
        for row in rows:
            batch = collate([self._encoder.encode(row)], stream="request", pad_id=self._encoder.pad_id)
            with torch.no_grad(), torch.autocast(self._where.type, dtype=torch.bfloat16, enabled=self._bf16):
                out = run_model(model, batch, device=self._where, layers={layer})
            out_list.append(prompt_states(out.hidden[layer], batch, mean=mean)[0].double().cpu())
        return out_list


def read_request(path: Path, plan: Plan) -> list[Row]:
    """Training rows that a file names: a JSON list, or a line each, of ids or of objects with ``id`` and, if needed, ``task``.

    Raises DataError naming line and id of what is no row of the run, or could be several.
    """
    tasks = {t.recipe: t for stage in plan.stages for t in (*stage.tasks, *stage.forget) if not t.gone}
    by_id: dict[str, list[Row]] = {}
    for task in tasks.values():
        for row in DataFolder.open(task.folder).rows("train"):
            by_id.setdefault(row.id, []).append(row)
    deleted = _deleted(plan)
    unknown = f"check the id; rows of {deleted}, which were deleted, cannot be named" if deleted else "check the id"
    out: list[Row] = []
    problems: list[Problem] = []
    for number, entry in enumerate(_entries(path), start=1):
        given = entry if isinstance(entry, dict) else {"id": entry}
        place = f"{path}:{number}:{given.get('id')}"
        rows = [r for r in by_id.get(str(given.get("id")), []) if given.get("task") in (None, r.task)]
        different = {row_key(row): row for row in rows}
        if len(different) != 1:
            names = ", ".join(sorted({row.task for row in rows}))
            what = f"could be one of several rows ({names})" if rows else "is no training row of this run"
            problems.append(Problem(place, what, 'add the task: {"id": …, "task": …}' if rows else unknown))
        else:
            out.append(next(iter(different.values())))
    if problems:
        more = len(problems) - _NAMED
        raise DataError.of(
            [
                *problems[:_NAMED],
                *([Problem(str(path), f"{more} more lines are wrong", "as above")] if more > 0 else []),
            ]
        )
    if not out:
        raise DataError("names no row", where=str(path), fix="write one id per line")
    return list({row_key(row): row for row in out}.values())


def _entries(path: Path) -> list[Any]:
    try:
        text = read_given(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), fix="name a text file of ids") from None
    try:
        whole = json.loads(text)
        if isinstance(whole, list):
            return whole
    except NOT_JSON:
        pass
    out: list[Any] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            found = json.loads(line)
        except NOT_JSON:
            found = line
        out.append(found if isinstance(found, (dict, str)) else line)
    return out
