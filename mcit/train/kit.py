"""The forgetting kit over a run: which rows a forget stage is measured on, and under which models."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mcit.core.errors import StateError
from mcit.core.files import copy_file
from mcit.core.interfaces import Reporter
from mcit.core.ranks import on_first
from mcit.core.schema import KitConfig
from mcit.core.seeds import seed_for
from mcit.core.types import Plan, Row, Stage, TaskSpec
from mcit.data.folder import DataFolder
from mcit.data.overlap import pictures_of
from mcit.data.rowbook import RowBook
from mcit.data.rowset import joined, pick
from mcit.evals.filtering import identity, load_filters
from mcit.evals.generator import sharing
from mcit.evals.kit import Sets, Subject, mean_losses, measure, read_kit, settings_digest
from mcit.models.quant import runs_bf16
from mcit.plan.forgetting import overlap
from mcit.plan.gone import gone
from mcit.runs.gates import done_stages
from mcit.runs.layout import KIT, RunLayout
from mcit.runs.shared import shared_from

if TYPE_CHECKING:
    from mcit.train.sequence import Session

_POOL = 512
"""Rows whose answers can be wrong ones of other rows."""
_NEW = "measured"


def kit_due(plan: Plan, after: int, config: KitConfig) -> tuple[Stage, ...]:
    """Forget stages measured after so many stages: just before the stage and ever after; with the base for the reference.

    None whose data were deleted.
    """
    base = after == 0 and "reference" in config.membership
    stages = [stage for stage in plan.stages if stage.forget and not gone(stage)]
    return tuple(stage for stage in stages if base or after >= plan.below(stage.index))


def sets_of(plan: Plan, stage: Stage, config: KitConfig) -> Sets:
    """The rows that a forget stage is measured on, the same under every model: at most ``config.rows`` of each kind."""
    earlier = list({t.name: t for s in plan.up_to(stage.index) for t in s.tasks}.values())
    book = RowBook(earlier, stage)

    def some(rows: Sequence[Row], purpose: str, count: int = config.rows) -> list[Row]:
        rng = random.Random(seed_for(plan.config.seed, "kit", stage.name, purpose))
        places = sorted(rng.sample(range(len(rows)), min(count, len(rows))))
        return list(pick(rows, places))

    forget = book.forget_rows()
    kept = [task for task in earlier if task in stage.tasks or not overlap(stage.forget, (task,))]
    retained = joined([_split(stage.tasks, "test"), _split(stage.tasks, "train")])
    drawn = some(forget, "forget")
    questions = {row.question for row in drawn}
    near = {
        "retained": some(_split(stage.tasks, "test"), "retained"),
        "same_question": some([row for row in retained if row.question in questions], "same_question"),
        "same_picture": some(_same_picture(drawn, [*kept, *stage.tasks]), "same_picture"),
        "decoupled": some(book.decouple_rows(), "decoupled") if _decoupled(stage, forget) else [],
    }
    asked = [*stage.forget, *stage.tasks, *kept]
    answers = [*some(forget, "answers", _POOL), *some(retained, "answers", _POOL)]
    return Sets(
        forget=drawn,
        holdout=some(holdout_of(stage, book), "holdout"),
        tasks={task.name: some(_split([task], "test"), f"task {task.name}") for task in kept if task.rows.get("test")},
        near=near,
        pool=sorted({row.answer for row in answers}),
        max_new_tokens={task.name: plan.config.eval.max_new_tokens or task.max_new_tokens for task in asked},
    )


def holdout_of(stage: Stage, book: RowBook) -> Sequence[Row]:
    """The stage's holdout; without one the test rows of what it forgets, which no stage trains on either."""
    rows = book.holdout_rows()
    return rows if len(rows) else _split(stage.forget, "test")


def _split(tasks: Iterable[TaskSpec], split: str) -> Sequence[Row]:
    return joined([DataFolder.open(task.folder).rows(split) for task in tasks])


def _decoupled(stage: Stage, forget: Sequence[Row]) -> bool:
    return bool(stage.decouple) or (len(forget) > 0 and all(row.meta.get("decouple") for row in forget))


def _same_picture(forget: Sequence[Row], tasks: Sequence[TaskSpec]) -> list[Row]:
    """Rows of retained tasks that ask something else about a picture of a row to forget."""
    shown = {pictures_of(row): row.question for row in forget if row.images}
    rows = joined([_split(tasks, "test"), _split(tasks, "train")]) if shown else []
    found = {(row.where, row.task): row for row in rows if row.images and pictures_of(row) in shown}
    return [row for row in found.values() if row.question != shown[pictures_of(row)]]


# ---- measuring -------------------------------------------------------------------------------------------------------
def measure_kit(
    session: Session, after: int, config: KitConfig, *, reporter: Reporter, stop: Callable[[], bool] = lambda: False
) -> None:
    """Measure every forget stage that is due after so many stages, unless that is done; every rank calls it.

    Raises Interrupted after the batch in which `stop` says so; what was measured is kept.
    """
    layout = session.run.layout
    for stage in kit_due(session.plan, after, config):
        reference = _reference(session, stage, config) if after else {}
        out = layout.kit(after, stage.folder)
        how = _measured(session, session, after, stage, config, out, reference, stop=stop)
        if how:
            session.run.ledger.append(
                "kit", after=after, stage=stage.folder, **({} if how == _NEW else {"shared": True})
            )
            reporter.line(f"{out.parent.name}/{stage.folder}: forgetting kit {how}")


def measure_gold(
    session: Session, gold: Session, config: KitConfig, *, reporter: Reporter, stop: Callable[[], bool] = lambda: False
) -> None:
    """Measure every committed forget stage under the model of a run that never saw its rows, at the stage of its name."""
    for stage in session.plan.stages:
        if not stage.forget or gone(stage):
            continue
        if not on_first(session.run.ranks, lambda s=stage: session.run.is_committed(s.folder)):  # type: ignore[misc]
            continue
        after = gold_reached(session.plan, gold, stage)
        out = session.run.layout.gold(stage.folder)
        reference = _reference(session, stage, config)
        if _measured(session, gold, after, stage, config, out, reference, stop=stop):
            session.run.ledger.append("gold", stage=stage.folder, run=str(gold.run.layout.root), after=after)
            reporter.line(f"{stage.folder}: gold run measured after its stage {after}")


def gold_reached(plan: Plan, gold: Session, stage: Stage) -> int:
    """As `gold_after`. Raises StateError for a gold run that has not come so far."""
    after = gold_after(plan, [s.name for s in gold.plan.stages], stage)
    if after > max(on_first(gold.run.ranks, lambda: done_stages(gold.run)), default=0):
        root = str(gold.run.layout.root)
        fix = f"finish it with: mcit resume {shlex.quote(root)}"
        raise StateError(f"has not come to stage {after} yet", where=root, fix=fix)
    return after


def gold_after(plan: Plan, names: Sequence[str], stage: Stage) -> int:
    """How many stages of a gold run, by their names, correspond to the stages up to one of a plan."""
    until = {s.name for s in plan.up_to(stage.index)}
    return max((k for k, name in enumerate(names, start=1) if name in until), default=0)


def _reference(session: Session, stage: Stage, config: KitConfig) -> Mapping[str, Sequence[float]]:
    """Mean losses under the base; it was measured first, as `kit_due` says."""
    folder = session.run.layout.kit(0, stage.folder)
    if "reference" not in config.membership or not (folder / KIT).is_file():
        return {}
    return on_first(session.run.ranks, lambda: mean_losses(folder))


def _taken_over(session: Session, after: int, stage: Stage, folder: Path, settings: str) -> bool:
    """Copy what the run that these stages are shared with measured, if that is of the same rows under the same model."""
    layout = session.run.layout
    other = shared_from(layout, session.plan.stages[max(after, 1) - 1].folder)
    source = RunLayout(other).kit(after, stage.folder) if other else folder
    try:
        if source == folder or (read_kit(source) or {}).get("settings") != settings:
            return False
    except StateError:
        return False  # a damaged one is told where it lies
    files = sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: p.name == KIT)
    for path in files:  # the record last: it makes the others whole
        copy_file(path, folder / path.relative_to(source))
    return True


def _measured(
    session: Session,
    subject: Session,
    after: int,
    stage: Stage,
    config: KitConfig,
    folder: Path,
    reference: Mapping[str, Sequence[float]],
    *,
    stop: Callable[[], bool],
) -> str:
    """Measure `stage` of a session's plan under the model of `subject`, or take that over: how; empty if that was done."""
    from mcit.train.sequence import left_state

    plan, ranks = session.plan, session.run.ranks
    sets, lineage = sets_of(plan, stage, config), subject.lineage(after)
    seed = seed_for(plan.config.seed, "kit", stage.name)
    state = left_state(subject.plan, subject.run, after)
    specs = plan.config.eval.filters if subject is session else []
    filters = identity(specs, load_filters(specs), state)
    given: dict[str, Any] = {"seed": seed, "filters": filters, "reference": str(sorted(reference.items()))}
    settings = settings_digest(sets, config, lineage.digest, **given)

    def done() -> bool:
        known = read_kit(folder)
        return known is not None and known["settings"] == settings

    if on_first(ranks, done):
        return ""
    if subject is session and on_first(ranks, lambda: _taken_over(session, after, stage, folder, settings)):
        return "taken over from the run that the stage is shared with"
    model = subject.model_after(after)
    bf16 = runs_bf16(plan.config.base.dtype, subject.device)
    with torch.no_grad(), torch.autocast(subject.device.type, dtype=torch.bfloat16, enabled=bf16):
        how = sharing(plan.config.eval)
        asked = Subject(model, subject.encoder, subject.device, lineage.digest, specs, state, how)
        given = {"batch": plan.config.eval.batch, "seed": seed, "reference": reference}
        measure(asked, sets, config, out=folder, settings=settings, stop=stop, ranks=ranks, **given)
    return _NEW
