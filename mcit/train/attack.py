"""Attacks on a forget stage: what comes back when its adapter is taken off, or after a little training on a copy.

Protocol of Unlearn-Smooth (Fan et al., 2025, arXiv:2502.05374), relearning: few rows, one epoch, batches of 4, AdamW with a
short warm-up. There all weights are tuned; here it is a fresh LoRA pair on every linear of the decoder, taken off afterwards:
nothing of an attack is ever part of the run. ``unload``, ``neighbour`` and ``benign`` are ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mcit.analytic.head import row_key
from mcit.core.errors import ConfigError
from mcit.core.files import digest_of
from mcit.core.interfaces import Reporter
from mcit.core.records import AttackRecord
from mcit.core.schema import AdapterConfig, EvalConfig, OptimConfig
from mcit.core.seeds import seed_for
from mcit.core.stored import valid, write_sealed
from mcit.core.types import JsonDict, Plan, Row, Stage, TaskSpec
from mcit.data.folder import DataFolder
from mcit.data.rowbook import RowBook
from mcit.data.rowset import joined
from mcit.evals.evaluate import evaluate, needs_model
from mcit.evals.filtering import load_filters
from mcit.evals.score import read_score
from mcit.evals.unlearning import mean, robustness
from mcit.models import adapters
from mcit.models.quant import QUANTISED, runs_bf16
from mcit.plan.forgetting import overlap
from mcit.plan.gone import gone
from mcit.train.stage import Material, build_stage

if TYPE_CHECKING:
    from mcit.train.sequence import Session

Kind = Literal["unload", "relearn", "neighbour", "benign"]
KINDS: tuple[Kind, ...] = ("unload", "relearn", "neighbour", "benign")
_BATCH = 4
_VERSION = 2
"""Goes up when an attack gives other answers; those of another version are made again."""


@dataclass(frozen=True)
class Attack:
    """What is done."""

    kind: Kind
    rows: tuple[int, ...] = (20, 40, 60)
    rank: int = 64
    lr: float = 1e-4
    """The protocol's 1e-5 is for all weights; 1e-4 is usual for LoRA."""
    epochs: int = 1


@dataclass(frozen=True)
class Subject:
    """A model that is attacked: of a session, after so many of its stages."""

    session: Session
    after: int
    name: str
    """Begins the names of its folders."""


def attack_problems(plan: Plan, stage: Stage) -> None:
    """Raise ConfigError for a stage that forgets nothing, or a base whose weights cannot be trained on."""
    if not stage.forget:
        named = [str(s.index) for s in plan.stages if s.forget]
        fix = f"name a stage that forgets: {', '.join(named)}" if named else "attack a run with a stage that forgets"
        raise ConfigError(f"stage {stage.folder} forgets nothing", where="--stage", fix=fix)
    if deleted := gone(stage):
        what = f"the data of {', '.join(deleted)} were deleted: there is nothing to attack with, nor to measure"
        raise ConfigError(what, where="--stage", fix="restore them")
    if plan.config.base.dtype in QUANTISED:
        what = f"the base is quantised ({plan.config.base.dtype}): an attack would measure the rounding too"
        raise ConfigError(
            what, where="base.dtype", fix="attack a run on a bf16 or fp32 base; eval.kit.four_bit rounds one"
        )
    if not any(task.rows.get("test") for task in stage.forget):
        raise ConfigError("has no test rows to measure", where=stage.forget[0].recipe, fix="add a test source to it")


def attack_rows(plan: Plan, stage: Stage, kind: Kind) -> list[Row]:
    """Training rows of an attack in the order they are taken; 40 rows begin with the same 20 as 20 rows.

    ``relearn``: those that the stage forgets. ``neighbour``: those it retains, the same question first. ``benign``: those of
    the next stage that learns, else of the first one that has nothing to do with what is forgotten.
    """
    earlier = [task for s in plan.up_to(stage.index) for task in s.tasks]
    book = RowBook(earlier, stage)
    forget = book.forget_rows()
    rng = random.Random(seed_for(plan.config.seed, "attack", stage.name, kind))
    if kind == "benign":
        later = [s for s in plan.stages if s.index > stage.index]
        others = [s for s in (*later, *plan.up_to(stage.index - 1)) if not s.forget]
        chosen = next((s for s in others if s.tasks and not overlap(stage.forget, s.tasks)), None)
        rows = list(_train(chosen.tasks)) if chosen else []
    else:
        rows = list(forget if kind == "relearn" else book.stage_rows())
    if not rows:
        fix = "choose another --kind" if kind != "benign" else "add a stage that learns something else"
        raise ConfigError("there are no rows to attack with", where=f"--kind {kind}", fix=fix)
    rng.shuffle(rows)
    if kind == "neighbour":
        asked = {row.question for row in forget}
        rows.sort(key=lambda row: row.question not in asked)
    return rows


def _train(tasks: Sequence[TaskSpec]) -> Sequence[Row]:
    return joined([DataFolder.open(task.folder).rows("train") for task in tasks])


def attack(
    session: Session,
    stage: Stage,
    what: Attack,
    *,
    controls: Sequence[Subject] = (),
    reporter: Reporter,
    stop: Callable[[], bool] = lambda: False,
) -> JsonDict:
    """Attack the model after a forget stage and write ``attacks/<stage>/<kind>.json``; answers so far are kept.

    Every number is an accuracy on what the stage forgets, in percent, but `robustness` and `area` (of ``100 - accuracy`` over
    rows, per row). `controls` get the same attack. Raises ConfigError as `attack_problems`.
    """
    from mcit.train.sequence import score

    plan, layout = session.plan, session.run.layout
    attack_problems(plan, stage)
    compared = (plan.below(stage.index), stage.index)
    for after in compared:
        score(session, after, reporter=reporter, tasks=stage.forget, stop=stop)
    before, forgotten = (_accuracy(layout.evals(k), stage.forget, plan) for k in compared)
    record: JsonDict = {"stage": stage.folder, "kind": what.kind, "before": before, "forgotten": forgotten}
    run = _Attacks(session, stage, what, reporter, stop)
    if what.kind == "unload":
        possible, accuracy = run.unloaded(forgotten, before)
        record |= {"possible": possible, "settings": {}, "controls": {}}
        record["results"] = [{"rows": 0, "accuracy": accuracy, "robustness": robustness(before, forgotten, accuracy)}]
    else:
        rows = attack_rows(plan, stage, what.kind)
        counts = sorted({min(n, len(rows)) for n in what.rows})
        if counts != sorted(set(what.rows)):
            reporter.line(f"note: there are {len(rows)} rows to attack with, so {counts} are taken")
        own = Subject(session, stage.index, "")
        results = [run.trained(own, rows[:n]) for n in counts]
        for entry in results:
            entry["robustness"] = robustness(before, forgotten, entry["accuracy"])
        record |= {"possible": True, "results": results, "area": _area(forgotten, results)}
        record["settings"] = {"rank": what.rank, "lr": what.lr, "epochs": what.epochs, "batch": _BATCH}
        record["controls"] = {c.name: [run.plain(c), *(run.trained(c, rows[:n]) for n in counts)] for c in controls}
    path = layout.attacks(stage.folder) / f"{what.kind}.json"
    write_sealed(path, valid(AttackRecord, record, where=path))
    session.run.ledger.append("attack", stage=stage.folder, kind=what.kind)
    return record


@dataclass(frozen=True)
class _Attacks:
    """The attacks of one call."""

    session: Session
    stage: Stage
    what: Attack
    reporter: Reporter
    stop: Callable[[], bool]

    def unloaded(self, forgotten: float | None, before: float | None) -> tuple[bool, float | None]:
        """Whether something can be taken off, and the accuracy without it.

        That is filters that apply what a method left, and an adapter that was not merged.
        """
        own, adapter = self.session.plan.config.eval, self.stage.adapter.carry in ("keep", "stack", "pool")
        left = [spec for spec, one in zip(own.filters, load_filters(own.filters), strict=True) if not one.reads]
        if len(left) == len(own.filters):
            return adapter, before if adapter else forgotten
        after, bare = self.stage.index - adapter, own.model_copy(update={"filters": left})
        subject = Subject(self.session, after, "")
        return True, self._score(subject, "unload", bare, lambda: self.session.model_after(after))

    def plain(self, subject: Subject) -> JsonDict:
        """A control as it is, without any attack."""
        bare = self._bare(subject)
        accuracy = self._score(subject, "plain", bare, lambda: subject.session.model_after(subject.after))
        return {"rows": 0, "accuracy": accuracy}

    def trained(self, subject: Subject, rows: Sequence[Row]) -> JsonDict:
        """Accuracy after a fresh adapter was trained on some rows; it is taken off again."""
        session, what, used = subject.session, self.what, list[torch.nn.Module]()

        def make() -> torch.nn.Module:
            model = session.model_after(subject.after)
            used.append(model)
            lineage = session.lineage(subject.after)
            plan, stage = _as_attack(session.plan, self.stage, what)
            work = build_stage(stage, Material(plan, model, session.encoder, lineage), inherited={})
            try:
                names = [n for n, p in model.named_parameters() if p.requires_grad]
                steps = math.ceil(len(rows) / _BATCH) * what.epochs
                given: dict[str, Any] = {"lr": what.lr, "warmup": max(1.0, steps // 10), "schedule": "constant"}
                work.ctx.fine_tune(rows, names=names, steps=steps, **given)
            finally:
                work.streams.close()
                work.engine.discard()
                work.engine.finish()
            return model

        try:
            accuracy = self._score(subject, f"{what.kind}-{len(rows)}", self._bare(subject), make, rows)
        finally:
            for model in used:
                if any(adapters.ACTIVE in layer.lora_A for layer in adapters.lora_layers(model).values()):
                    adapters.remove(model)
                model.requires_grad_(False)
        return {"rows": len(rows), "accuracy": accuracy}

    def _bare(self, subject: Subject) -> EvalConfig:
        """The run's own way of scoring; a control has no filters, whose state is the run's."""
        own = self.session.plan.config.eval
        return own if subject.session is self.session and subject.after else own.model_copy(update={"filters": []})

    def _score(
        self,
        subject: Subject,
        name: str,
        config: EvalConfig,
        make: Callable[[], torch.nn.Module],
        rows: Sequence[Row] = (),
    ) -> float | None:
        """Accuracy on what the stage forgets; `make` gives the model, trained on `rows`, if the answers are not there yet."""
        from mcit.train.sequence import left_state

        session, stage = subject.session, self.stage
        what = [self.what.kind, name, self.what.rank, self.what.lr, self.what.epochs, session.plan.config.seed]
        what += [_VERSION, list(map(row_key, rows))]
        config = config.model_copy(update={"backend": "own"})
        folder = self.session.run.layout.attacks(stage.folder) / f"{subject.name}{'-' if subject.name else ''}{name}"
        lineage = digest_of([session.lineage(subject.after).digest, what])
        state = left_state(session.plan, session.run, subject.after)
        given = {"folder": folder, "config": config, "lineage": lineage, "state": state}
        model = make() if needs_model(stage.forget, **given) else None  # type: ignore[arg-type]
        bf16 = runs_bf16(session.plan.config.base.dtype, session.device)
        with torch.no_grad(), torch.autocast(session.device.type, dtype=torch.bfloat16, enabled=bf16):
            encoder, device = session.encoder, session.device
            more = {"reporter": self.reporter, "stop": self.stop}
            evaluate(stage.forget, model=model, encoder=encoder, device=device, **given, **more)  # type: ignore[arg-type]
        return _accuracy(folder, stage.forget, self.session.plan)


def _as_attack(plan: Plan, stage: Stage, what: Attack) -> tuple[Plan, Stage]:
    """The plan and stage that the inner fine-tuning runs in: one process, no methods, a fresh adapter."""
    engine = plan.config.engine.model_copy(update={"kind": "plain", "offload": "none"})
    optim = OptimConfig(batch=_BATCH, lr=what.lr, clip=1.0)
    adapter = AdapterConfig(rank=what.rank, alpha=2.0 * what.rank, also_train=[], carry="merge")
    seed = seed_for(plan.config.seed, "attack", stage.name, "stage")
    made = replace(stage, methods=(), adapter=adapter, optim=optim, epochs=1, steps=1, seed=seed, gradient_order=())
    return replace(plan, config=plan.config.model_copy(update={"engine": engine}), probes=(), router=None), made


def _accuracy(folder: Path, tasks: Sequence[TaskSpec], plan: Plan) -> float | None:
    """Mean over the data sets that the stage forgets."""
    scores = [read_score(folder / task.name) for task in tasks if task.rows.get("test")]
    return mean([None if s is None else float(s[plan.config.eval.mode]["accuracy"]) for s in scores])


def _area(forgotten: float | None, results: Sequence[JsonDict]) -> float | None:
    """Area under ``100 - accuracy`` over rows by trapezoids from no rows on, over the number of rows."""
    points = [(0, forgotten), *((entry["rows"], entry["accuracy"]) for entry in results)]
    if any(accuracy is None for _, accuracy in points) or points[-1][0] == 0:
        return None
    pairs = zip(points, points[1:], strict=False)
    total = sum((b - a) * (200 - x - y) / 2 for (a, x), (b, y) in pairs if x is not None and y is not None)
    return total / points[-1][0]
