"""What hooks are handed: the step, whole tensors, the shared reference, rows, logging."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from mcit.core.errors import TrainingError
from mcit.core.interfaces import Gradients, RowLoss
from mcit.core.seeds import seed_for
from mcit.core.types import Batch, Counts, JsonDict, ModelOutput, Row, Stage, WeightUnit
from mcit.data.rowbook import RowBook
from mcit.data.streams import StageStreams, Stream
from mcit.engine import world
from mcit.engine.base import Engine
from mcit.engine.layers import layers_of
from mcit.engine.optim import lr_factor
from mcit.models.lineage import Delta
from mcit.train.basemodel import BATCH, BaseModel
from mcit.train.blobs import Blobs, StoredBlob
from mcit.train.objective import normalised, token_loss

Watch = Callable[[int, int], None]
Phase = Literal["start", "step", "after", "end"]
"""Before the first step, from the first forward pass of a step to its update, after it, after the last step."""


class Context:
    """StepContext and StageContext in one; `at` moves it to a step."""

    def __init__(
        self,
        stage: Stage,
        engine: Engine,
        streams: StageStreams,
        data: RowBook,
        *,
        needs: frozenset[str] = frozenset(),
        base: BaseModel | None = None,
        at_base: bool = False,
        blobs: Blobs | None = None,
        members: Mapping[str, Delta] | None = None,
    ) -> None:
        """`at_base`: before its first step the stage's model is the base. `members` are those of the pool below."""
        self.stage = stage
        self.seed = stage.seed
        self.data = data
        self.weights = engine.weights
        self.step = 0
        self.total_steps = stage.steps
        self.num_units = len(self.weights.units("lora")) or len(self.weights.units())
        self.engine = engine
        self.streams = streams
        self._needs = needs
        self._base, self._at_base, self._blobs = base, at_base, blobs
        self._members = members or {}
        self.counts = Counts({}, {})
        self.again = False
        self.ended: str | None = None
        """Why the stage ends after this step, before its last one."""
        self.enter("start")
        self._references: dict[int, tuple[Batch, ModelOutput]] = {}
        self._log: dict[str, Tensor | float] = {}

    def at(self, step: int) -> None:
        """Enter step `step` (from 0)."""
        self.step = step
        self._at_base = False
        self.next_batch()
        self.enter("step")

    def enter(self, phase: Phase, watch: Watch | None = None) -> None:
        """Enter a phase; `watch` is told how much of how much a pass has gone over, and may raise Interrupted."""
        self.phase: Phase = phase
        self.watch: Watch = watch or (lambda done, total: None)
        self._tuned = 0

    def next_batch(self) -> None:
        """The loop turns to another micro-batch: outputs of the reference on the last one are not kept."""
        self._references.clear()

    @property
    def lr(self) -> float:
        """Learning rate of everything but the projector in this step."""
        return self.stage.optim.lr * lr_factor(self.step, self.total_steps, self.stage.optim)

    def reference(self, batch: Batch) -> ModelOutput:
        """Stage-start outputs on a batch, computed once however many methods ask; changed batches are others."""
        if id(batch) not in self._references:  # the batch is kept too, so that no other can have its id
            self._references[id(batch)] = (batch, self.engine.reference(batch, self._needs))
        return self._references[id(batch)][1]

    @property
    def base(self) -> JsonDict:
        """Checksum of weights, tokenizer and processor of the run's base, and its precision."""
        return dict(self._required_base().identity)

    def base_pass(
        self, rows: Sequence[Row], *, logits: bool = False, size: int = BATCH
    ) -> Iterator[tuple[list[int], Batch, ModelOutput]]:
        """This rank's share of outputs of the run's base, with places in `rows`; the random state is as before."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        forward = self._forward if self._at_base else None
        with torch.random.fork_rng(devices=devices):
            layers = layers_of(self._needs)
            yield from self._required_base().outputs(
                rows, forward=forward, layers=layers, logits=logits, size=size, watch=self.watch
            )

    def blob(
        self, name: str, fingerprint: JsonDict, build: Callable[[], tuple[Mapping[str, Tensor], JsonDict]]
    ) -> StoredBlob:
        """Large tensors kept once per run, computed by `build` if they are not there yet."""
        if self._blobs is None:
            self._blobs = Blobs()
        return self._blobs.open(name, fingerprint, build)

    def _required_base(self) -> BaseModel:
        if self._base is None:
            raise TrainingError("no base model is known here", where=self.stage.name, fix="build the stage with one")
        return self._base

    def log(self, name: str, value: Tensor | float) -> None:
        """Record a scalar; the device is asked only when the step's metrics are written."""
        self._log[name] = value.detach() if isinstance(value, Tensor) else value

    def end_stage(self, reason: str) -> None:
        """The step that just ended was the stage's last; every rank says so. Raises TrainingError but in `after_step`."""
        if self.phase != "after":
            raise TrainingError("end_stage is for after_step", where=self.stage.name, fix="call it there")
        self.ended = self.ended or reason

    def take_log(self, back: dict[str, Tensor | float] | None = None) -> dict[str, Tensor | float]:
        """What is logged and not yet asked for, put aside; `back` takes its place."""
        log, self._log = self._log, back or {}
        return log

    def metrics(self) -> dict[str, float]:
        """Scalars logged since the last call."""
        out = {name: float(value) for name, value in self._log.items()}
        self._log = {}
        return out

    def forward_pass(
        self,
        source: str | Sequence[Row],
        *,
        rows: int = BATCH,
        limit: int | None = None,
        share: bool = False,
        change: Callable[[Batch], Batch] | None = None,
    ) -> Iterator[tuple[Batch, ModelOutput]]:
        """Batches of a stream in stored order, or of any rows, with outputs: no gradients, no dropout.

        Every rank gets every batch, so that what a method makes of them is the same on any number of ranks. With
        `share` rank r of W gets batches r, r + W, … and the method puts them together by `all_sum`; every rank runs
        equally many forward passes, the last one perhaps for nothing, because sharded weights are gathered in them.
        With `change` the model sees the changed batch, which is also what is handed out.
        """
        rank, size = (world.rank(), world.size()) if share else (0, 1)
        first: Batch | None = None
        mine: Batch | None = None
        count, total = 0, len(self.streams.rows_of(source, limit=limit))
        given = self.streams.batches(source, rows=rows, limit=limit)
        for count, batch in enumerate(map(change, given) if change else given, start=1):
            first = first or batch
            if (count - 1) % size == rank:
                mine = batch
            if count % size == 0 and mine is not None:
                yield mine, self._forward(mine)
                mine = None
                self.watch(min(count * rows, total), total)
        if count % size and first is not None:
            out = self._forward(mine or first)
            if mine is not None:
                yield mine, out
            self.watch(total, total)

    def _forward(self, batch: Batch) -> ModelOutput:
        with torch.no_grad(), self.engine.quiet():
            return self.engine.forward(batch, self._needs)

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of what each gathered in a shared pass; a tensor of this rank's device."""
        return world.all_sum(tensor)

    def gradient_pass(
        self,
        source: str | Sequence[Row],
        *,
        rows: int = 1,
        limit: int | None = None,
        loss: RowLoss | None = None,
        share: bool = False,
        effective: bool = False,
    ) -> Iterator[tuple[Batch, Gradients]]:
        """One gradient per `rows` rows of a stream or of a list, with those rows; gone after the iteration.

        Every rank goes over every row, so that the gradients are the same on any number of ranks, or with `share` over
        its rows of each batch: the same up to the order of sums, in a fraction of the time. Engines sum over ranks.
        Raises TrainingError inside a step, whose gradients it would discard.
        """
        self._refuse_in_step("gradient_pass")
        engine, done = self.engine, 0
        total = len(self.streams.rows_of(source, limit=limit))
        for whole, mine in self.streams.shares(source, rows=rows, limit=limit, share=share):
            counts, copies = Counts.of_batch(whole), 1 if share else world.size()
            with (
                engine.quiet(),
                engine.traced() if effective else contextlib.nullcontext(),
                engine.micro_batch(last=True),
            ):
                out = engine.forward(mine, self._needs)
                term = (loss or token_loss)(out, mine)
                engine.backward(normalised(term, out, mine, counts) / copies, mine)
            try:
                yield whole, engine.gradients()
            finally:
                engine.discard()
            done += len(whole.rows)
            self.watch(done, total)

    def as_member(self, member: str) -> AbstractContextManager[None]:
        """A block in which the adapter in training has the values of an earlier member of the pool, and back bit for bit."""
        pairs = self._members[member].read().lora

        def put(unit: WeightUnit, tensors: dict[str, Tensor]) -> None:
            pair = pairs[unit.name]
            tensors["A"].copy_(pair.A_RI)
            tensors["B"].copy_(pair.B_OR * (pair.scale / unit.scale))

        return self.engine.moved(put)

    def _refuse_in_step(self, what: str) -> None:
        if self.phase == "step":
            raise TrainingError(
                f"{what} would discard the gradients of the step it is called in",
                where=f"stage {self.stage.name}, step {self.step + 1}",
                fix="call it in on_stage_start, after_step or on_stage_end, or hold the slot step:passes",
            )

    def fine_tune(
        self,
        source: str | Sequence[Row],
        *,
        names: Collection[str],
        steps: int,
        lr: float,
        batch: int | None = None,
        loss: RowLoss | None = None,
        schedule: Literal["cosine", "linear", "constant"] = "cosine",
        weight_decay: float = 0.0,
        warmup: float = 0.0,
    ) -> list[float]:
        """Train some parameters on some rows with a fresh AdamW; returns the loss of each step.

        The order of rows depends on the stage's seed, the step and how often this was called in it, so that a stage
        resumed from its last checkpoint repeats it bit for bit. Raises TrainingError inside a step.
        """
        self._refuse_in_step("fine_tune")
        engine, rows = self.engine, self.streams.rows_of(source)
        own = {"lr": lr, "lr_projector": None, "schedule": schedule, "weight_decay": weight_decay, "warmup": warmup}
        optim = self.stage.optim.model_copy(update=own)
        seed = seed_for(self.seed, "fine_tune", self.phase, self.step, self._tuned)
        self._tuned += 1
        streams = self.streams.over([Stream("rows", rows, per_step=batch or optim.batch, seed=seed)])
        tuner, losses = engine.tuner(names, optim), []
        for i in range(steps):
            batches = streams.next_step()
            counts = engine.target_counts(batches)
            for k, micro in enumerate(batches):
                with engine.micro_batch(last=k == len(batches) - 1):
                    out = engine.forward(micro, self._needs)
                    engine.backward(normalised((loss or token_loss)(out, micro), out, micro, counts), micro)
            losses.append(float(engine.total_loss()))
            tuner.step(lr_factor(i, steps, optim))
            self.watch(i + 1, steps)
        return losses
