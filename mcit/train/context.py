"""What hooks are handed: the step, whole tensors, the shared reference, rows, logging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mcit.core.errors import TrainingError
from mcit.core.types import Batch, Counts, JsonDict, ModelOutput, Row, Stage
from mcit.data.rowbook import RowBook
from mcit.data.streams import StageStreams
from mcit.engine import world
from mcit.engine.base import Engine
from mcit.engine.gradients import LocalGradients
from mcit.engine.optim import lr_factor
from mcit.train.basemodel import BaseModel
from mcit.train.blobs import Blobs, StoredBlob


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
    ) -> None:
        """`at_base`: before its first step the stage's model is the base."""
        self.stage = stage
        self.seed = stage.seed
        self.data = data
        self.weights = engine.weights
        self.step = 0
        self.total_steps = stage.steps
        self.num_units = len(self.weights.units("lora")) or len(self.weights.units())
        self._engine = engine
        self._streams = streams
        self._needs = needs
        self._base, self._at_base, self._blobs = base, at_base, blobs
        self.counts = Counts({}, {})
        self._reference: tuple[Batch, ModelOutput] | None = None
        self._log: dict[str, Tensor | float] = {}

    def at(self, step: int) -> None:
        """Enter step `step` (from 0)."""
        self.step = step
        self._at_base = False
        self._reference = None

    @property
    def lr(self) -> float:
        """Learning rate of everything but the projector in this step."""
        return self.stage.optim.lr * lr_factor(self.step, self.total_steps, self.stage.optim)

    def reference(self, batch: Batch) -> ModelOutput:
        """Stage-start outputs on a batch, computed once however many methods ask."""
        if self._reference is None or self._reference[0] is not batch:
            self._reference = (batch, self._engine.reference(batch, self._needs))
        return self._reference[1]

    @property
    def base(self) -> JsonDict:
        """Checksum of weights, tokenizer and processor of the run's base, and its precision."""
        return dict(self._required_base().identity)

    def base_pass(self, rows: Sequence[Row], *, logits: bool = False) -> Iterator[tuple[list[int], Batch, ModelOutput]]:
        """This rank's share of outputs of the run's base, with places in `rows`; the random state is as before."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        forward = self._forward if self._at_base else None
        with torch.random.fork_rng(devices=devices):
            yield from self._required_base().outputs(rows, forward=forward, logits=logits)

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

    def metrics(self) -> dict[str, float]:
        """Scalars logged since the last call."""
        out = {name: float(value) for name, value in self._log.items()}
        self._log = {}
        return out

    def forward_pass(
        self,
        stream: str,
        *,
        limit: int | None = None,
        share: bool = False,
        change: Callable[[Batch], Batch] | None = None,
    ) -> Iterator[tuple[Batch, ModelOutput]]:
        """Batches of a stream in stored order with outputs, without gradients; `limit` counts rows.

        Every rank gets every batch, so that what a method makes of them is the same on any number of ranks. With
        `share` rank r of W gets batches r, r + W, … and the method puts them together by `all_sum`; every rank runs
        equally many forward passes, the last one perhaps for nothing, because sharded weights are gathered in them.
        With `change` the model sees the changed batch, which is also what is handed out.
        """
        rank, size = (world.rank(), world.size()) if share else (0, 1)
        first: Batch | None = None
        mine: Batch | None = None
        count = 0
        given = self._streams.batches(stream, limit=limit)
        for count, batch in enumerate(map(change, given) if change else given, start=1):
            first = first or batch
            if (count - 1) % size == rank:
                mine = batch
            if count % size == 0 and mine is not None:
                yield mine, self._forward(mine)
                mine = None
        if count % size and first is not None:
            out = self._forward(mine or first)
            if mine is not None:
                yield mine, out

    def _forward(self, batch: Batch) -> ModelOutput:
        with torch.no_grad():
            return self._engine.forward(batch, self._needs)

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of what each gathered in a shared pass; a tensor of this rank's device."""
        return world.all_sum(tensor)

    def gradient_pass(self, stream: str, *, limit: int | None = None, share: bool = False) -> Iterator[LocalGradients]:
        """Gradients of each batch's mean token loss, at most `limit` rows; discarded after each iteration.

        Every rank goes over every row, so that the gradients are the same on any number of ranks, or with `share` over
        its rows of each batch: the same up to the order of sums, in a fraction of the time. Engines sum over ranks.
        """
        every = ((batch, batch.target_count * world.size()) for batch in self._streams.batches(stream, limit=limit))
        for batch, tokens in self._streams.shares(stream, limit=limit) if share else every:
            with self._engine.micro_batch(last=True):
                out = self._engine.forward(batch, self._needs)
                self._engine.backward(out.nll_N.sum() / max(1, tokens), batch)
            try:
                yield self._engine.gradients()  # type: ignore[misc]
            finally:
                self._engine.discard()
