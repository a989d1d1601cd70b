"""One stage of training. It knows streams and hooks, and no method by name.

Everything mutable is in engine, methods and streams, and the draft saves all three.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mcit.core.errors import Interrupted
from mcit.core.interfaces import Reporter
from mcit.core.profile import current, stepped, stepping, timed
from mcit.core.schema import CheckpointConfig
from mcit.core.seeds import seed_for
from mcit.core.types import Batch, JsonDict, Progress, Row, Stage
from mcit.data.streams import StageStreams
from mcit.engine import world
from mcit.engine.base import Engine
from mcit.engine.checkpoint import Moments, read_moments
from mcit.engine.figures import read
from mcit.engine.peak import begin_peak, peak_bytes
from mcit.methods.compose import MethodSet
from mcit.routers.base import Router
from mcit.runs.draft import StageDraft
from mcit.train.context import Context
from mcit.train.passes import StepPasses, over_ranks
from mcit.train.probing import Probing


@dataclass
class StageWork:
    """A stage ready to train."""

    stage: Stage
    engine: Engine
    methods: MethodSet
    streams: StageStreams
    ctx: Context
    checkpoint: CheckpointConfig
    stages: int
    device: torch.device = torch.device("cpu")
    trained: int = 0
    """Trained parameters."""
    frozen: dict[str, int] = field(default_factory=dict)
    """Checksums of what does not train, from before the engine was built."""
    later_steps: int = 0
    """Steps of the stages after this one, for the time left."""
    probes: Probing | None = None
    monitor: Callable[[Sequence[JsonDict]], str] | None = None
    """Why the stage should end now, by what the probe ``stability`` has on record; empty if it should not."""
    router: Router | None = None
    member: str = ""
    """The member of the pool that the stage trains."""
    below: Path | None = None
    """Folder of the stage below where its optimiser goes on in this one."""
    left: Moments | None = None
    """What the stage leaves of its optimiser to the next, from the end of its training on."""
    validate: Callable[[], dict[str, float]] | None = None
    validate_every: int = 0
    log_every: int = 1
    """Steps whose figures are read together."""
    roomy: bool = False
    """Whether memory surely suffices for the largest batch."""


def train_stage(
    work: StageWork,
    draft: StageDraft,
    *,
    reporter: Reporter,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> JsonDict:
    """Start hooks, steps, end hooks; continues from the newest live checkpoint. Returns what progress.json records.

    `told` gets what a step adds to metrics.jsonl.

    Raises Interrupted after a checkpoint when `stop` says so, TrainingError for a non-finite loss or gradient.
    """
    stage, engine, methods, ctx = work.stage, work.engine, work.methods, work.ctx
    begin_peak(work.device)
    with timed("checkpoint"):
        first = draft.restore(engine, methods, work.streams)
    if work.below is not None and not first:
        engine.take_over(read_moments(work.below))
    for note in [*engine.notes, *work.streams.encoder.notes]:
        reporter.line(f"note: {note}")
    extra = dict(draft.extra)
    ctx.ended = extra.pop("ended", None)
    meter = Meter(work, first, **extra)
    if first:
        ctx.at(first - 1)
    else:
        torch.manual_seed(seed_for(stage.seed, "rng", 0, world.rank()))  # dropout: the same whether or not restarted
        if stage.steps and not work.roomy:
            with timed("preparing"):
                engine.rehearse(work.streams.largest_batch())  # out-of-memory shows now, not at hour nine
        ctx.enter("start", _watch(work, reporter, stop, "start"))
        with timed("methods"):
            methods.on_stage_start(ctx)
    if work.probes:
        work.probes.resume(draft)
        if first == 0:
            with timed("probes"):
                meter.skip(work.probes.at(0, stage.steps, draft, trained=0.0))
    last = saved = ctx.ended is not None or first == stage.steps
    lines = Lines(engine, meter, draft, told)
    for step in range(first, first if last else stage.steps):
        ctx.at(step)
        with stepping(step):
            with timed("data"):
                batches = work.streams.next_step()
            with timed("methods"):
                batches = [methods.on_batch(batch, ctx) for batch in batches]
            terms = run_step(work, batches)
            ctx.enter("after")
            with timed("methods"):
                methods.after_step(ctx)
        done = step + 1
        last = ctx.ended is not None or done == stage.steps
        lines.add(done, {**terms, **ctx.take_log()})
        if work.validate and work.validate_every and done % work.validate_every == 0:
            with timed("evaluation"):
                lines.read(work.validate())
        total = done if last else stage.steps
        waiting = done % work.log_every and not current()  # a profile is told the tokens of every step
        if last or not waiting or (work.probes and work.probes.due(done, total)):
            lines.read()
        if work.probes:
            with timed("probes"):
                meter.skip(work.probes.at(done, total, draft, trained=meter.seconds))
            alarm = work.monitor(work.probes.lines("stability")) if work.monitor else ""
            if alarm:
                ctx.ended = f"{alarm}; {ctx.ended}" if ctx.ended else alarm
                if not last:  # probes that measure at the end do not know yet that this is it
                    with timed("probes"):
                        meter.skip(work.probes.at(done, done, draft, trained=meter.seconds))
                last = True
        stopping = stop()
        due = stopping or _due(work, done, last=last)
        if due:
            lines.read()
        reporter.progress(meter.progress)
        if due:
            state = {**meter.state(), **({"ended": ctx.ended} if ctx.ended else {})}
            with timed("checkpoint"):
                draft.checkpoint(done, engine, methods, work.streams, state)
            saved = last
        if stopping:
            raise Interrupted(
                f"stopped after step {done} of {stage.steps}; checkpoint written",
                where=f"stage {stage.folder}",
                fix="run the same command again to continue",
            )
        if last:
            break
    if ctx.ended:
        reporter.line(f"stage {stage.folder} ends after step {ctx.step + 1} of {stage.steps}: {ctx.ended}")
    ctx.enter("end", _watch(work, reporter, stop if saved else lambda: False, "end"))
    with timed("methods"):
        methods.on_stage_end(ctx)
        if work.router:
            work.router.learn(work.member, ctx)
    if stage.optim.moments == "keep":
        work.left = engine.moments()
    logged = {name: value if math.isfinite(value) else None for name, value in ctx.metrics().items()}
    return {**meter.summary(ctx), **({"logged": logged} if logged else {})}


def _watch(
    work: StageWork, reporter: Reporter, stop: Callable[[], bool], phase: Literal["start", "end"]
) -> Callable[[int, int], None]:
    """Passes of methods at a stage's start or end report progress and give way to `stop`: the hooks run again next time.

    At the end that needs a checkpoint of the last step to come back to.
    """
    stage = work.stage

    def watch(done: int, total: int) -> None:
        reporter.progress(Progress(stage.index, work.stages, stage.name, phase, done, total))
        if stop():
            raise Interrupted(
                f"stopped in what methods do at the {phase} of the stage; they begin it again",
                where=f"stage {stage.folder}",
                fix="run the same command again to continue",
            )

    return watch


class Lines:
    """Lines of metrics.jsonl whose figures may still be on the device."""

    def __init__(
        self,
        engine: Engine,
        meter: Meter,
        draft: StageDraft,
        told: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self._engine, self._meter, self._draft, self._told = engine, meter, draft, told
        self._waiting: list[tuple[int, float, Mapping[str, Tensor | float]]] = []
        """Step, when the host was through with it, what methods make of it."""

    def add(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """A step that was launched, with what methods make of it."""
        self._waiting.append((step, time.monotonic(), values))

    def read(self, more: Mapping[str, float] | None = None) -> None:
        """Write the lines of all steps that wait, `more` into the last one; waits for the device.

        Raises TrainingError for a step whose loss or gradient is not finite.
        """
        own = self._engine.read()
        values = read([values for _, _, values in self._waiting])
        for place, ((step, ended, _), metrics, named) in enumerate(
            zip(self._waiting, own, values, strict=True), start=1
        ):
            newest = place == len(own)
            ended = time.monotonic() if newest else ended
            line = self._meter.after(step, {**metrics, **named, **((newest and more) or {})}, ended)
            stepped(int(line["tokens"]))
            self._draft.record(step, line)
            self._told(step, line)
        self._waiting = []


def run_step(work: StageWork, batches: list[Batch]) -> dict[str, Tensor]:
    """One optimiser step over this rank's micro-batches; returns each method's share of the loss."""
    engine, methods, ctx = work.engine, work.methods, work.ctx
    step = StepPasses(engine, methods, ctx, batches)
    step.run()
    shares = over_ranks(step.shares, [f"loss/{method.name}" for method in methods.methods], device=engine.device)
    if methods.has_penalty:
        with timed("penalties"):
            penalties = engine.add_penalties(
                lambda unit, tensors: methods.weight_penalty(unit, tensors, ctx), methods.penalty_kinds
            )
        shares.update({f"penalty/{name}": value for name, value in penalties.items()})
    with timed("methods"):
        methods.before_step(engine.gradients(), ctx)
    with timed("optimiser"):
        engine.step()
    return shares


def _due(work: StageWork, step: int, *, last: bool) -> bool:
    every = work.checkpoint.every
    return every > 0 and (step % every == 0 or last)


class Meter:
    """Counts tokens and seconds of a stage over restarts, and tells how long it will take."""

    def __init__(
        self,
        work: StageWork,
        first: int,
        *,
        tokens: int = 0,
        seconds: float = 0.0,
        loss: float | None = None,
        peak_bytes: int = 0,
    ) -> None:
        """`tokens`, `seconds`, `loss` and `peak_bytes`: what an earlier process had counted after step `first`."""
        self._work, self._first = work, first
        self._tokens, self._seconds_before, self._peak_before = tokens, seconds, peak_bytes
        self._start = self._last = time.monotonic()
        self._loss = loss
        stage = work.stage
        self.progress = Progress(stage.index, work.stages, stage.name, "train", first, stage.steps)

    @property
    def peak(self) -> int:
        """Most bytes of memory in this stage, earlier processes included."""
        return max(self._peak_before, peak_bytes(self._work.device))

    @property
    def seconds(self) -> float:
        """Seconds spent in this stage, earlier processes included."""
        return self._seconds_before + time.monotonic() - self._start

    def skip(self, seconds: float) -> None:
        """Leave out seconds that were spent on something else than steps."""
        self._start += seconds
        self._last += seconds

    def after(self, step: int, metrics: dict[str, float], now: float) -> dict[str, float]:
        """Take in a step that ended at `now`; returns its metrics with timing."""
        elapsed, self._last = now - self._last, now
        self._tokens += int(metrics["tokens"])
        self._loss = metrics["loss"]
        per_step = (now - self._start) / (step - self._first)
        left = per_step * (self._work.stage.steps - step)
        speed = metrics["tokens"] / elapsed if elapsed > 0 else None
        stage = self._work.stage
        total_left = left + per_step * self._work.later_steps
        self.progress = Progress(
            stage.index, self._work.stages, stage.name, "train", step, stage.steps, self._loss, speed, left, total_left
        )
        return {**metrics, "seconds": round(elapsed, 4)}

    def state(self) -> JsonDict:
        """What a checkpoint keeps of the meter."""
        seconds = round(self.seconds, 3)
        return {"tokens": self._tokens, "seconds": seconds, "loss": self._loss, "peak_bytes": self.peak}

    def summary(self, ctx: Context) -> JsonDict:
        """Content of progress.json."""
        planned = self._work.stage.steps
        steps = ctx.step + 1 if ctx.ended else planned
        return {
            **({"ended": {"step": steps, "planned": planned, "reason": ctx.ended}} if ctx.ended else {}),
            "steps": steps,
            "tokens": self._tokens,
            "seconds": round(self.seconds, 3),
            "loss": self._loss,
            "trained": self._work.trained,
            "peak_bytes": self.peak,
        }


def validation(
    engine: Engine, rows: Sequence[Row], batch_of: Callable[[Sequence[Row]], Batch], *, size: int
) -> Callable[[], dict[str, float]]:
    """A function that scores validation rows: mean token loss and share of answer tokens predicted right.

    Batches of `size` rows, made one at a time; rank r of W makes and takes batches r, r + W, …; every rank calls it and gets
    the sums over all.
    """

    def score() -> dict[str, float]:
        totals = torch.zeros(3, dtype=torch.float64)
        starts = range(0, len(rows), size)
        for first in range(0, len(starts), world.size()):
            turn = first + world.rank()
            start = starts[
                turn if turn < len(starts) else 0
            ]  # sharded weights are gathered in a pass: all ranks run it
            batch = batch_of(rows[start : start + size])
            with torch.no_grad(), engine.quiet():
                out = engine.forward(batch)
            if turn < len(starts):
                right = (out.logits_NV.argmax(-1) == out.targets_N).sum()
                totals += torch.tensor([float(out.nll_N.sum()), float(right), batch.target_count], dtype=torch.float64)
        nll, right, count = world.all_sum(totals).tolist()
        return {"validation/loss": nll / max(1.0, count), "validation/token_accuracy": right / max(1.0, count)}

    return score
