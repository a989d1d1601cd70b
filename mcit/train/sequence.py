"""All stages in order: a committed stage is skipped, an interrupted one continues, scoring follows each commit."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mcit.core.doing import doing
from mcit.core.interfaces import Reporter
from mcit.core.profile import belongs_to, timed
from mcit.core.ranks import Ranks, on_first
from mcit.core.stored import write_sealed
from mcit.core.types import JsonDict, Plan, Progress, Stage, TaskSpec
from mcit.data.encode import Encoder
from mcit.engine.optim import moment_line
from mcit.evals.certificate import certify
from mcit.evals.evaluate import evaluate, needs_eval, needs_model
from mcit.models import adapters
from mcit.models.basefiles import base_digest
from mcit.models.combine import Combination, combine, combined_digest, place
from mcit.models.lineage import Lineage, advance, apply_lineage, read_lineage
from mcit.models.pool import answers_digest
from mcit.models.quant import runs_bf16
from mcit.plan.forgetting import forget_due
from mcit.plan.gone import without_data
from mcit.plan.preflight import make_encoder
from mcit.plan.slices import slices_due
from mcit.runs.gates import frozen_gate, rejected, require_open, stage_in
from mcit.runs.layout import COMBINATION
from mcit.runs.run import Run
from mcit.train.basemodel import load_run_base
from mcit.train.gating import decide
from mcit.train.kit import measure_kit
from mcit.train.loop import train_stage
from mcit.train.profiling import watched
from mcit.train.routing import pooled
from mcit.train.stage import Material, audit_lines, build_stage, drift, write_stage

Logged = Callable[[str, int, int, Mapping[str, float]], None]
"""Gets a stage's folder, the steps of the stages below, a step of the stage and its metrics."""


class Session:
    """The model of a run at some stage, loaded when first needed and moved forward in memory."""

    def __init__(self, plan: Plan, run: Run, reporter: Reporter) -> None:
        self.plan, self.run, self._reporter = standing(plan, run), run, reporter
        self.candidate = ""
        """Folder of the stage that is being judged, which is not where stages are."""
        self._model: PreTrainedModel | None = None
        self._encoder: Encoder | None = None
        self._at = -1
        self._told: list[str] = []
        self._sha = base_digest(plan.model_path)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return device_of(self.plan)

    @property
    def encoder(self) -> Encoder:
        """Rows to tensors, by the base's own processor."""
        if self._encoder is None:
            self._encoder = make_encoder(self.plan)
        return self._encoder

    @functools.cached_property
    def roomy(self) -> bool:
        """`Plan.roomy`, as the first rank finds; asked by all ranks at a time."""
        return on_first(self.run.ranks, lambda: self.plan.roomy)

    def lineage(self, stages: int) -> Lineage:
        """Lineage of the first `stages` stages. Raises StateError for a damaged or foreign stage."""
        folders = [self.home(stage) for stage in self.plan.up_to(stages)]
        return read_lineage(folders, base=str(self.plan.model_path), base_sha256=self._sha)

    def home(self, stage: Stage) -> Path:
        """Where the files of a stage are."""
        waiting = stage_in(self.run.layout.candidate(stage.folder))
        return waiting if stage.folder == self.candidate else self.run.stage(stage.folder)

    def model_after(self, stages: int) -> PreTrainedModel:
        """The model with the weights after so many stages; moves forward in memory, reloads to go back."""
        lineage = self.lineage(stages)
        count = len(lineage.deltas)
        if self._model is None or self._at > count:
            self._reporter.line(f"loading {self.plan.model_path.name} ({self.plan.config.base.dtype})")
            doing("loading the base")
            self._model = self._load()
            apply_lineage(self._model, lineage)
        else:
            for i in range(self._at, count):
                advance(self._model, lineage.deltas[i], below=lineage.deltas[i - 1] if i else None)
        self._at = count
        return self._model

    def combined(self, spec: Combination) -> PreTrainedModel:
        """The base with a combination of stages in its weights, or beside them where they are quantised."""
        model = self._load()
        place(model, combine(model, self.lineage(max(spec.stages)), spec))
        self._model, self._at = None, -1  # what comes next loads anew
        return model

    def _load(self) -> PreTrainedModel:
        return load_run_base(self.plan, device=self.device, told=self._reporter.line)

    def new_lines(self, lines: list[str]) -> list[str]:
        """`lines`, unless they are what was told last: a table of parameters is shown once per run."""
        new, self._told = lines != self._told, lines
        return lines if new else []

    def trained(self, stage: Stage) -> None:
        """The stage was committed with its adapter still on the model: take it off and advance as a restart would."""
        if self._model is None:
            return
        if stage.adapter.kind != "none":
            adapters.remove(self._model)
        self._model.requires_grad_(False)
        lineage = self.lineage(stage.index)
        advance(self._model, lineage.deltas[-1], below=None)
        self._at = len(lineage.deltas)


def device_of(plan: Plan) -> torch.device:
    """Where the model of a plan lives."""
    wanted = plan.config.engine.device
    return torch.device("cuda" if wanted == "cuda" or wanted == "auto" and torch.cuda.is_available() else "cpu")


def standing(plan: Plan, run: Run) -> Plan:
    """The plan without the stages that were rejected; the others keep their numbers and seeds."""
    without = frozenset(on_first(run.ranks, lambda: sorted(rejected(run))))
    return (
        replace(plan, stages=tuple(stage for stage in plan.stages if stage.folder not in without)) if without else plan
    )


def run_sequence(
    plan: Plan,
    run: Run,
    *,
    reporter: Reporter,
    stop: Callable[[], bool] = lambda: False,
    scored: Callable[[], None] = lambda: None,
    logged: Logged = lambda stage, before, step, metrics: None,
) -> None:
    """Train, commit and score every stage that is not done yet; with several ranks all of them call it.

    `scored` is called by the first rank after the base's scores and each stage's, `logged` by every rank after each step.

    Raises Interrupted when `stop` says so on any rank; running again continues.
    """
    session = Session(plan, run, reporter)
    plan = session.plan
    for line in on_first(run.ranks, lambda: without_data(plan.stages, run)):
        reporter.line(line)
    belongs_to("base")
    if plan.config.eval.base:
        score(session, 0, reporter=reporter, stop=stop)
        on_first(run.ranks, scored)
    elif plan.config.eval.tasks != "none":
        compared = (*forget_due(plan, 0), *slices_due(plan, 0))  # what the first stage is compared with
        if compared:
            score(session, 0, reporter=reporter, tasks=compared, stop=stop)
    kit = plan.config.eval.kit
    if kit is not None:
        with timed("evaluation"):
            measure_kit(session, 0, kit, reporter=reporter, stop=stop)
    for stage in plan.stages:
        belongs_to(stage.folder)
        if not on_first(run.ranks, functools.partial(run.is_committed, stage.folder)):
            produce(session, stage, reporter=reporter, stop=stop, logged=logged)
        score(session, stage.index, reporter=reporter, stop=stop)
        if kit is not None:
            with timed("evaluation"):
                measure_kit(session, stage.index, kit, reporter=reporter, stop=stop)
        on_first(run.ranks, scored)


def agreed_stop(ranks: Ranks, stop: Callable[[], bool]) -> Callable[[], bool]:
    """One answer on every rank: whether `stop` says so on any of them; called by all ranks once per step."""
    return stop if ranks.size() == 1 else lambda: any(ranks.gather_objects(bool(stop())))


def produce(session: Session, stage: Stage, *, reporter: Reporter, stop: Callable[[], bool], logged: Logged) -> None:
    """Train a stage, unless that is done and it only waits for its gate; then let the gate decide.

    Raises GateStopped where it is set aside, or was before.
    """
    run, layout = session.run, session.run.layout
    on_first(run.ranks, functools.partial(require_open, run, stage.folder))
    gated = on_first(run.ranks, lambda: frozen_gate(run, stage.folder)) is not None
    if not gated or not on_first(run.ranks, lambda: stage_in(layout.candidate(stage.folder)).is_dir()):
        train(session, stage, reporter=reporter, stop=agreed_stop(run.ranks, stop), logged=logged)
    if not gated:
        return
    below = session.plan.below(stage.index)

    def scored(tasks: tuple[TaskSpec, ...], folder: Path) -> None:
        made, lineage = functools.partial(session.model_after, stage.index), session.lineage(stage.index)
        given = (session, tasks, folder, answers_digest(lineage), made, reporter, stop)
        _scored(*given, after=stage.index, pool=lineage)

    session.candidate = stage.folder
    try:
        decide(
            run,
            stage,
            due=due(session.plan, stage.index),
            before=layout.evals(below),
            score=scored,
            mode=session.plan.config.eval.mode,
            reporter=reporter,
        )
    finally:
        session.candidate = ""


def train(
    session: Session,
    stage: Stage,
    *,
    reporter: Reporter,
    stop: Callable[[], bool],
    logged: Logged = lambda stage, before, step, metrics: None,
) -> None:
    """Train and commit one stage."""
    plan, run = session.plan, session.run
    before = sum(earlier.steps for earlier in plan.up_to(stage.index - 1))
    lineage = session.lineage(stage.index - 1)
    with timed("preparing"):
        model = session.model_after(stage.index - 1)
    material = Material(plan, model, session.encoder, lineage, blobs=run.layout.blobs)
    final = stage_in(run.layout.candidate(stage.folder)) if stage.gate else None
    with run.draft(stage.folder, keep=plan.config.checkpoint.keep, final=final) as draft:
        doing(f"preparing stage {stage.folder}")
        with timed("preparing"):
            work = build_stage(stage, material, inherited=shared_state(plan, run, stage))
        reporter.line(
            f"stage {stage.index} of {len(plan.config.stages)}: {stage.name}, {stage.steps} steps, {stage.rows} rows"
        )
        moments = moment_line({n: p for n, p in model.named_parameters() if p.requires_grad}, stage.optim)
        for line in session.new_lines([*audit_lines(model), *([moments] if moments else [])]):
            reporter.line(f"  {line}")
        doing(f"starting stage {stage.folder}")
        told = functools.partial(logged, stage.folder, before)
        work.roomy = session.roomy
        try:
            with watched(model, session.device):
                progress = train_stage(work, draft, reporter=reporter, stop=stop, told=told)
        finally:
            work.streams.close()  # or every stage would leave its worker threads behind
        work.engine.discard()
        work.engine.finish()
        doing(f"writing stage {stage.folder}")

        def write(folder: Path) -> None:
            write_stage(folder, work, material)
            progress.update(drift=drift(work, material))

        with timed("checkpoint"):
            draft.commit(write, progress)
    session.candidate = stage.folder if stage.gate else ""
    session.trained(stage)


def shared_state(plan: Plan, run: Run, stage: Stage) -> dict[str, Path]:
    """`inherited_state` as rank 0 sees it: a shared file system may show a new folder later on other nodes."""
    found = on_first(run.ranks, lambda: {k: str(v) for k, v in inherited_state(plan, run, stage).items()})
    return {name: Path(folder) for name, folder in found.items()}


def inherited_state(plan: Plan, run: Run, stage: Stage) -> dict[str, Path]:
    """Each method's newest state folder below a stage; a method not listed in a stage keeps its state for its return."""
    return left_state(plan, run, stage.index - 1)


def left_state(plan: Plan, run: Run, after: int) -> dict[str, Path]:
    """Each method's newest state folder after so many stages."""
    found: dict[str, Path] = {}
    for earlier in plan.up_to(after):
        home = run.stage(earlier.folder) / "methods"
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
    run = session.run
    wanted = due(session.plan, after) if tasks is None else tasks
    made, lineage = functools.partial(session.model_after, after), session.lineage(after)
    given = (session, wanted, run.layout.evals(after), answers_digest(lineage), made, reporter, stop)
    _scored(*given, after=after, pool=lineage, told={"after": after})
    on_first(run.ranks, lambda: certify(run, after))


def score_combined(
    session: Session, spec: Combination, *, reporter: Reporter, tasks: tuple[TaskSpec, ...], stop: Callable[[], bool]
) -> None:
    """Score a combination of stages on some tasks as a stage is scored, unless that is done; beside the matrix."""
    run, last = session.run, max(spec.stages)
    folder, lineage = run.layout.combined(spec.name), session.lineage(last)
    made = functools.partial(session.combined, spec)
    on_first(run.ranks, lambda: write_sealed(folder / COMBINATION, spec.json()))
    digest = combined_digest(lineage, spec)
    _scored(session, tasks, folder, digest, made, reporter, stop, after=last, told={"combined": spec.name})


def _scored(
    session: Session,
    wanted: tuple[TaskSpec, ...],
    folder: Path,
    digest: str,
    make_model: Callable[[], PreTrainedModel],
    reporter: Reporter,
    stop: Callable[[], bool],
    *,
    after: int,
    pool: Lineage | None = None,
    told: JsonDict | None = None,
) -> None:
    """Answer and score tasks into a folder unless that was done. Rows get adapters of the pool of a lineage.

    What is `told` goes to the ledger before any score changes: a kill then leaves a certificate that is known to be old.
    """
    plan, run = session.plan, session.run
    state = left_state(plan, run, after)
    if session.candidate:
        left = stage_in(run.layout.candidate(session.candidate)) / "methods"
        state = {**state, **{folder.name: folder for folder in sorted(left.glob("*")) if folder.is_dir()}}
    given: dict[str, Any] = {"folder": folder, "config": plan.config.eval, "lineage": digest, "state": state}
    if not wanted or not on_first(run.ranks, lambda: needs_eval(wanted, **given)):
        return
    if told is not None:
        run.ledger.append("eval", **told, tasks=[task.name for task in wanted])
    answered = not on_first(run.ranks, lambda: needs_model(wanted, **given))
    doing(f"scoring after stage {after}")
    with timed("preparing"):
        model: Any = None if answered else make_model()
    bf16 = runs_bf16(plan.config.base.dtype, session.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(timed("evaluation"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(session.device.type, dtype=torch.bfloat16, enabled=bf16))
        routed = None if answered or pool is None else stack.enter_context(pooled(plan, model, session.encoder, pool))
        evaluate(
            wanted,
            **given,
            model=model,
            encoder=None if answered else session.encoder,
            device=session.device,
            reporter=reporter,
            progress=Progress(after, len(plan.config.stages), "", "eval", 0, 0),
            stop=stop,
            ranks=run.ranks,
            pool=routed,
        )


def due(plan: Plan, after: int) -> tuple[TaskSpec, ...]:
    """Tasks to score after so many stages, those of forget stages included; none for ``eval.tasks: none``."""
    if plan.config.eval.tasks == "none":
        return ()
    forget = tuple(t for t in plan.forget_tasks if not t.gone) if after == 0 else forget_due(plan, after)
    return tuple({task.name: task for task in (*_due(plan, after), *forget, *slices_due(plan, after))}.values())


def _due(plan: Plan, after: int) -> tuple[TaskSpec, ...]:
    """Tasks of the matrix: for the base all of them, else as eval.tasks says."""
    setting = plan.config.eval.tasks
    if isinstance(setting, list):
        return tuple(t for t in plan.tasks if t.name in setting)
    if after == 0 or setting == "all":
        return plan.tasks
    seen = {t.name for stage in plan.up_to(after) for t in stage.tasks}
    return tuple(t for t in plan.tasks if t.name in seen)
