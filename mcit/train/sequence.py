"""All stages in order: a committed stage is skipped, an interrupted one continues, scoring follows each commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mcit.core.interfaces import Reporter
from mcit.core.types import Plan, Progress, Stage, TaskSpec
from mcit.data.encode import Encoder
from mcit.evals.evaluate import evaluate, needs_eval, needs_model
from mcit.models import adapters
from mcit.models.adapterfile import read_adapter
from mcit.models.lineage import Lineage, advance, apply_lineage, read_lineage
from mcit.models.load import base_digest, load_base
from mcit.runs.run import Run
from mcit.train.loop import train_stage
from mcit.train.preflight import make_encoder
from mcit.train.stage import Material, audit_lines, build_stage, write_stage


class Session:
    """The model of a run at some stage, loaded when first needed and moved forward in memory."""

    def __init__(self, plan: Plan, run: Run, reporter: Reporter) -> None:
        self.plan, self.run, self._reporter = plan, run, reporter
        self._model: PreTrainedModel | None = None
        self._encoder: Encoder | None = None
        self._at = -1
        self._sha = base_digest(plan.model_path)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        wanted = self.plan.config.engine.device
        return torch.device("cuda" if wanted == "cuda" or wanted == "auto" and torch.cuda.is_available() else "cpu")

    @property
    def encoder(self) -> Encoder:
        """Rows to tensors, by the base's own processor."""
        if self._encoder is None:
            self._encoder = make_encoder(self.plan)
        return self._encoder

    def lineage(self, stages: int) -> Lineage:
        """Lineage of the first `stages` stages. Raises StateError for a damaged or foreign stage."""
        folders = [self.run.layout.stage(stage.folder) for stage in self.plan.stages[:stages]]
        return read_lineage(folders, base=str(self.plan.model_path), base_sha256=self._sha)

    def model_after(self, stages: int) -> PreTrainedModel:
        """The model with the weights after so many stages; moves forward in memory, reloads to go back."""
        lineage = self.lineage(stages)
        if self._model is None or self._at > stages:
            self._reporter.line(f"loading {self.plan.model_path.name} ({self.plan.config.base.dtype})")
            self._model = self._load()
            apply_lineage(self._model, lineage)
        else:
            for i in range(self._at, stages):
                advance(self._model, lineage.deltas[i], below=lineage.deltas[i - 1] if i else None)
        self._at = stages
        return self._model

    def _load(self) -> PreTrainedModel:
        base = self.plan.config.base
        model = load_base(
            self.plan.model_path,
            dtype=base.dtype,
            attention=base.attention,
            trust_remote_code=base.trust_remote_code,
            device=self.device,
        )
        if base.adapter:
            known = frozenset(model.state_dict())
            adapters.merge(model, read_adapter(Path(base.adapter), known=known))
        return model

    def trained(self, stage: Stage) -> None:
        """The stage was committed with its adapter still on the model: take it off and advance as a restart would."""
        if self._model is None:
            return
        if stage.adapter.kind == "lora":
            adapters.remove(self._model)
        self._model.requires_grad_(False)
        lineage = self.lineage(stage.index)
        advance(self._model, lineage.deltas[-1], below=None)
        self._at = stage.index


def run_sequence(plan: Plan, run: Run, *, reporter: Reporter, stop: Callable[[], bool] = lambda: False) -> None:
    """Train, commit and score every stage that is not done yet.

    Raises Interrupted when `stop` says so; running again continues.
    """
    session = Session(plan, run, reporter)
    if plan.config.eval.base:
        score(session, 0, reporter=reporter, stop=stop)
    for stage in plan.stages:
        if not run.is_committed(stage.folder):
            train(session, stage, reporter=reporter, stop=stop)
        score(session, stage.index, reporter=reporter, stop=stop)


def train(session: Session, stage: Stage, *, reporter: Reporter, stop: Callable[[], bool]) -> None:
    """Train and commit one stage."""
    plan, run = session.plan, session.run
    lineage = session.lineage(stage.index - 1)
    model = session.model_after(stage.index - 1)
    material = Material(plan, model, session.encoder, lineage)
    with run.draft(stage.folder, keep=plan.config.checkpoint.keep) as draft:
        work = build_stage(stage, material, inherited=inherited_state(plan, run, stage))
        reporter.line(
            f"stage {stage.index} of {len(plan.stages)}: {stage.name}, {stage.steps} steps, {stage.rows} rows"
        )
        for line in audit_lines(model):
            reporter.line(f"  {line}")
        try:
            progress = train_stage(work, draft, reporter=reporter, stop=stop)
        finally:
            work.streams.close()  # or every stage would leave its worker threads behind
        work.engine.discard()
        draft.commit(lambda folder: write_stage(folder, work, material), progress)
    session.trained(stage)


def inherited_state(plan: Plan, run: Run, stage: Stage) -> dict[str, Path]:
    """Each method's newest state folder below a stage; a method not listed in a stage keeps its state for its return."""
    found: dict[str, Path] = {}
    for earlier in plan.stages[: stage.index - 1]:
        home = run.layout.stage(earlier.folder) / "methods"
        found.update({folder.name: folder for folder in sorted(home.glob("*")) if folder.is_dir()})
    return found


def score(
    session: Session,
    after: int,
    *,
    reporter: Reporter,
    tasks: tuple[TaskSpec, ...] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Score the tasks due after so many stages (0: the base), unless that is done.

    Raises Interrupted after the batch in which `stop` says so; the answers so far are kept.
    """
    plan, run = session.plan, session.run
    wanted = due(plan, after) if tasks is None else tasks
    folder = run.layout.evals(after)
    digest = session.lineage(after).digest
    if not wanted or not needs_eval(wanted, folder=folder, config=plan.config.eval, lineage=digest):
        return
    answered = not needs_model(wanted, folder=folder, config=plan.config.eval, lineage=digest)
    model: Any = None if answered else session.model_after(after)
    bf16 = plan.config.base.dtype == "bf16"
    with torch.no_grad(), torch.autocast(session.device.type, dtype=torch.bfloat16, enabled=bf16):
        evaluate(
            wanted,
            folder=folder,
            model=model,
            encoder=None if answered else session.encoder,
            config=plan.config.eval,
            device=session.device,
            lineage=digest,
            reporter=reporter,
            progress=Progress(after, len(plan.stages), "", "eval", 0, 0),
            stop=stop,
        )
    run.ledger.append("eval", after=after, tasks=[task.name for task in wanted])


def due(plan: Plan, after: int) -> tuple[TaskSpec, ...]:
    """Tasks to score after so many stages: for the base all of them, else as eval.tasks says."""
    setting = plan.config.eval.tasks
    if setting == "none":
        return ()
    if isinstance(setting, list):
        return tuple(t for t in plan.tasks if t.name in setting)
    if after == 0 or setting == "all":
        return plan.tasks
    seen = {t.name for stage in plan.stages[:after] for t in stage.tasks}
    return tuple(t for t in plan.tasks if t.name in seen)
