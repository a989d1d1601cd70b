"""Run short plans on the tiny model without a run directory: what contract tests compare."""

import contextlib
import dataclasses
import shutil
from pathlib import Path
from unittest import mock

from mcit.core.files import sha256_file, write_json
from mcit.core.interfaces import Silent
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage, advance, apply_lineage, read_lineage
from mcit.models.load import load_base
from mcit.plan import preflight
from mcit.plan.plan import make_plan, parse_run
from mcit.plan.preflight import make_encoder
from mcit.train.loop import train_stage
from mcit.train.stage import Material, build_stage, write_stage
from tests.fakes.small import Killed

TINY = {
    "name": "bench",
    "seed": 3,
    "base": {"family": "tiny", "dtype": "fp32"},
    "engine": {"micro_batch": 4, "workers": 0},
    "checkpoint": {"every": 0},
    "eval": {"tasks": "none"},
    "defaults": {
        "adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"]},
        "optim": {"batch": 8, "lr": 1e-2, "lr_projector": 1e-3, "warmup": 0},
        "max_steps": 4,
    },
    "stages": [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"}],
}


def config_of(**changes):
    """TINY with top-level keys replaced and `defaults` updated: what a config file would say."""
    return {**TINY, **changes, "defaults": {**TINY["defaults"], **changes.get("defaults", {})}}


def plan_of(**changes):
    """The plan of that config."""
    config, problems = parse_run(config_of(**changes))
    assert config is not None and not problems, problems
    with mock.patch.object(preflight, "make_encoder", remembering):
        return make_plan(config)


class Remembering:
    """An encoder that encodes each row once: equal rows give equal samples."""

    def __init__(self, encoder, known):
        self._encoder, self._known = encoder, known

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode(self, row):
        key = (row.root, row.images, row.turns, row.encoding)
        if key not in self._known:
            self._known[key] = self._encoder.encode(row)
        return dataclasses.replace(self._known[key], row=row)


def remembering(plan):
    """The encoder of a plan with what it has encoded so far."""
    base = plan.config.base
    return Remembering(make_encoder(plan), ENCODED.setdefault((str(plan.model_path), base.chat_template), {}))


ENCODED = {}
"""Encoded rows by model and template."""


class Draft:
    """The part of a StageDraft that the loop uses, in a plain folder."""

    def __init__(self, folder, resume_from=None):
        self.folder, self.resume_from, self.extra, self.lines = Path(folder), resume_from, {}, []
        self.probes = []
        self.last, self.kept = None, {}

    def restore(self, engine, methods, streams):
        if self.resume_from is None:
            return 0
        engine.load(self.folder / "live")
        methods.load(self.folder / "live" / "methods")
        streams.seek(self.cursors)
        return self.resume_from

    def record(self, step, metrics):
        self.lines.append({"step": step, **metrics})

    def probe(self, line):
        self.probes.append(line)

    def probed(self):
        self.probes = [line for line in self.probes if line["step"] <= (self.resume_from or 0)]
        return list(self.probes)

    def checkpoint(self, step, engine, methods, streams, extra=None):
        shutil.rmtree(self.folder / "live", ignore_errors=True)
        engine.save(self.folder / "live")
        methods.save(self.folder / "live" / "methods")
        self.cursors, self.last, self.kept = dict(streams.cursors), step, dict(extra or {})


def run_plan(plan, folder, *, engine=None, stop_at=None, only=None, blobs=None):
    """Train every stage; returns {stage folder: {file: sha256}} of what a commit would hold.

    `stop_at` = (stage index, step): checkpoint there, throw everything away, and go on with a new model from disk; so it goes
    on from the last checkpoint after `tests.fakes.small.Killed`.
    `blobs` is a folder that all ranks see, for methods that keep large tensors per run.
    """
    folder = Path(folder)
    sha = base_digest(plan.model_path)
    encoder = remembering(plan)
    out, inherited = {}, {}
    model, lineage = load_base(plan.model_path, dtype=plan.config.base.dtype), Lineage(str(plan.model_path), sha)
    for stage in plan.stages[:only]:
        home = folder / stage.folder
        home.mkdir(parents=True)
        draft = Draft(folder / f"draft-{stage.index}")
        draft.folder.mkdir()
        make = {} if engine is None else {"make_engine": engine}
        try:
            work = build_stage(stage, Material(plan, model, encoder, lineage, blobs), inherited=inherited, **make)
            if stop_at and stop_at[0] == stage.index:
                with contextlib.suppress(Stopped):
                    train_stage(work, StopAfter(draft, stop_at[1]), reporter=Silent())
                model = load_base(plan.model_path, dtype=plan.config.base.dtype)
                apply_lineage(model, lineage)
                work = build_stage(stage, Material(plan, model, encoder, lineage, blobs), inherited=inherited, **make)
                draft.resume_from = stop_at[1]
            done = train_stage(work, draft, reporter=Silent())
        except Killed:
            model = load_base(plan.model_path, dtype=plan.config.base.dtype)
            apply_lineage(model, lineage)
            work = build_stage(stage, Material(plan, model, encoder, lineage, blobs), inherited=inherited, **make)
            draft.resume_from, draft.extra = draft.last, draft.kept
            done = train_stage(work, draft, reporter=Silent())
        write_json(home / "progress.json", {key: done[key] for key in done if key not in ("seconds", "peak_bytes")})
        work.engine.finish()
        write_stage(home, work, Material(plan, model, encoder, lineage))
        out[stage.folder] = {str(p.relative_to(home)): sha256_file(p) for p in sorted(home.rglob("*")) if p.is_file()}
        inherited = {**inherited, **{p.name: p for p in (home / "methods").glob("*")}}
        folders = [folder / s.folder for s in plan.stages[: stage.index]]
        below = lineage.deltas[-1] if lineage.deltas else None
        lineage = read_lineage(folders, base=str(plan.model_path), base_sha256=sha)
        from mcit.models import adapters

        if stage.adapter.kind != "none":
            adapters.remove(model)
        advance(model, lineage.deltas[-1], below=None if stage.adapter.kind != "none" else below)
    out["model"] = model
    return out


class Stopped(Exception):
    pass


class StopAfter:
    """A draft that checkpoints after step n and then throws the process away."""

    def __init__(self, draft, step):
        self._draft, self._step = draft, step
        self.extra = {}
        self.probe, self.probed = draft.probe, draft.probed

    def restore(self, engine, methods, streams):
        self._parts = (engine, methods, streams)
        return 0

    def record(self, step, metrics):
        if step == self._step:
            self._draft.checkpoint(step, *self._parts)
            raise Stopped


def tensors_of(result):
    """The hashes of tensor files only, stage by stage."""
    return {
        stage: {f: sha for f, sha in files.items() if f.endswith(".safetensors")}
        for stage, files in result.items()
        if stage != "model"
    }
