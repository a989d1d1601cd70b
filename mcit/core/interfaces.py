"""What methods and the loop see of engine, data and logging; implemented in engine/, train/ and cli/."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

from mcit.core.types import (
    Batch,
    Counts,
    JsonDict,
    LossSum,
    ModelOutput,
    Progress,
    Row,
    RowFit,
    Stage,
    TaskSpec,
    WeightUnit,
)

if TYPE_CHECKING:
    from torch import Tensor


RowLoss = Callable[[ModelOutput, Batch], LossSum | None]
"""A loss of a pass, as `Method.loss_term` gives one."""


class Weights(Protocol):
    """Whole tensors, one unit at a time, in one fixed order on every rank."""

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """Units with something trainable in this stage, sorted by name: of one kind, or ``lora`` and ``tensor``."""

    def gathered(self, unit: WeightUnit) -> AbstractContextManager[dict[str, Tensor]]:
        """Detached fp32 copies of the unit's tensors by role."""

    def edit(self, unit: WeightUnit) -> AbstractContextManager[dict[str, Tensor]]:
        """Like `gathered`, but what is changed in place is written back.

        Needs slot weights:edit, weights:prox or step:passes; raises PlanError without.
        """

    def forget_moments(self, unit: WeightUnit) -> None:
        """Put the optimiser's moments of the unit's tensors to zero, so that a step does not move what was set."""

    def local(self) -> Mapping[str, Tensor]:
        """This rank's fp32 part of every trained tensor by parameter name, flat where tensors are sharded; read only."""


class Gradients(Protocol):
    """Gradients between backward and step, one unit at a time."""

    def units(self, kind: str | None = None) -> Sequence[WeightUnit]:
        """The same units and order as `Weights.units`."""

    def full(self, unit: WeightUnit) -> dict[str, Tensor]:
        """Copies of the unit's gradients by role; a tensor without gradient is zeros."""

    def replace(self, unit: WeightUnit, role: str, gradient: Tensor) -> None:
        """Put a gradient in place of the present one."""

    def scale(self, unit: WeightUnit, factor: float) -> None:
        """Multiply the unit's gradients."""

    def freeze(self, unit: WeightUnit, role: str, mask: Tensor) -> None:
        """Keep the entries where `mask` is true exactly as they are in the coming step."""

    def effective(self, unit: WeightUnit) -> Tensor:
        """Gradient of the unit's effective weight, fp32: (O, I) of a LoRA pair's matrix, else the tensor's own.

        Only in a `gradient_pass` with ``effective=True``; raises TrainingError elsewhere.
        """


class Held(Protocol):
    """Gradients taken out of a step, in the engine's own layout; on a GPU they stay there."""

    def full(self, unit: WeightUnit) -> dict[str, Tensor]:
        """Copies of the unit's gradients by role, fp32; a tensor without gradient is zeros. Called by every rank."""


class StepPasses(Protocol):
    """The forward and backward passes of one step; none of these waits for the device."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that have rows in this step."""

    def accumulate(self, streams: Collection[str] | None = None, *, loss: RowLoss | None = None) -> None:
        """Forward and backward over the step's micro-batches of some streams (all), added to the gradients.

        The loss is the step's own with every method's terms, or `loss`, over the step's counts.
        """

    def take(self) -> Held:
        """Hand out the gradients, summed over ranks, and clear them."""

    def add(self, held: Held, factor: float | Tensor = 1.0) -> None:
        """Add ``factor * held`` to the gradients."""

    def dot(self, a: Held, b: Held) -> Tensor:
        """The inner product over all trained tensors, fp64."""

    def norm(self, held: Held) -> Tensor:
        """The Euclidean norm over all trained tensors, fp64."""

    def moved(self, fn: Callable[[WeightUnit, dict[str, Tensor]], None]) -> AbstractContextManager[None]:
        """A block in which `fn` has changed every unit's fp32 tensors in place; afterwards they are back bit for bit."""


class TensorStore(Protocol):
    """Large state of a method: named tensors in host memory, written as safetensors."""

    def get(self, kind: str, name: str) -> Tensor | None:
        """The tensor, or None."""

    def require(self, kind: str, name: str) -> Tensor:
        """The tensor. Raises StateError if it is not there."""

    def put(self, kind: str, name: str, tensor: Tensor) -> None:
        """Store a detached copy in host memory."""

    def accumulate(self, kind: str, name: str, tensor: Tensor, factor: float = 1.0) -> None:
        """Add ``factor * tensor`` to the stored one in place, or store it."""

    def drop(self, kind: str, name: str | None = None) -> None:
        """Forget one tensor, or all of a kind."""

    def names(self, kind: str) -> list[str]:
        """Sorted names of a kind."""


class Blob(Protocol):
    """Tensors of a run in one file, read piece by piece."""

    @property
    def index(self) -> JsonDict:
        """What lies where."""

    def get(self, name: str) -> Tensor:
        """A whole tensor, read now."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A part of a tensor's first axis, read now."""


class DataContext(Protocol):
    """Rows that a method may draw a stream from; no tensors."""

    @property
    def stage(self) -> Stage:
        """The stage being built or run."""

    @property
    def seed(self) -> int:
        """The stage's seed."""

    @property
    def stages(self) -> Sequence[Stage]:
        """Earlier stages and this one, in order."""

    @property
    def tasks(self) -> Sequence[str]:
        """Tasks of this stage and of all earlier ones, in order of first appearance."""

    def rows(self, task: str, split: str = "train") -> Sequence[Row]:
        """Rows of a task of this stage or of any earlier one, in the recipe's order."""

    def stage_rows(self) -> Sequence[Row]:
        """Training rows of this stage, in the recipes' order."""

    def forget_rows(self, stage: Stage | None = None) -> Sequence[Row]:
        """Training rows of the recipes that this stage (or an earlier one) forgets, in their order; without those held out."""

    def without_forgotten(self, rows: Sequence[Row], *, known: Collection[str] = ()) -> list[Row]:
        """Those of `rows`, which a method kept, that neither this stage nor one since their task was last trained forgets.

        `known` are folders of stages whose rows are out already. Raises DataError for another one whose data were deleted.
        """

    def alternate_rows(self) -> Sequence[Row]:
        """The rows to forget, in their order, with their alternate answers. Raises DataError for one without."""

    def decouple_rows(self, *, category: str = "", tries: int = 3, max_new_tokens: int = 32) -> Sequence[Row]:
        """What each row to forget asks about a harmless picture, in their order. Raises DataError for one without.

        With a `category` (``answer``, ``task``, ``folder`` or ``meta.<key>``) a stage without any makes them: pictures of
        retained rows of another one, `tries` for each row, and what the stage-start model says about them.
        """

    def holdout_rows(self) -> Sequence[Row]:
        """Rows like those to forget that are never trained on: of ``holdout`` recipes, and marked ``meta.holdout``."""

    def pool(self, recipe: str) -> Sequence[Row]:
        """Training rows of a recipe that a method of this or an earlier stage names in `recipes`."""

    def pool_digest(self, recipe: str) -> str:
        """Digest of such a recipe's text and sources."""

    def spec(self, task: str) -> TaskSpec:
        """Scorer, style and length of answers of a task of this stage or of any earlier one."""


class NamesContext(Protocol):
    """What `select_trainable` may know."""

    @property
    def stage(self) -> Stage:
        """The stage being built."""

    @property
    def seed(self) -> int:
        """The stage's seed."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every parameter by name."""


class StepContext(Protocol):
    """What per-step hooks may use."""

    @property
    def stage(self) -> Stage:
        """The stage being trained."""

    @property
    def step(self) -> int:
        """From 0."""

    @property
    def total_steps(self) -> int:
        """Steps of the stage."""

    @property
    def again(self) -> bool:
        """In a loss term: whether an earlier pass of this step went over this stream. Sums of a step count the first."""

    @property
    def num_units(self) -> int:
        """LoRA units of the stage (trained tensors when there are none)."""

    @property
    def weights(self) -> Weights:
        """Whole tensors, one unit at a time."""

    @property
    def lr(self) -> float:
        """Learning rate of everything but the projector in this step."""

    @property
    def data(self) -> DataContext:
        """Rows of this stage and of earlier ones."""

    @property
    def counts(self) -> Counts:
        """Rows and supervised tokens of the present step by stream, over all ranks; set before the first loss term."""

    @property
    def base(self) -> JsonDict:
        """Checksum of weights, tokenizer and processor of the run's base, and its precision."""

    def base_pass(
        self, rows: Sequence[Row], *, logits: bool = False, size: int = 8
    ) -> Iterator[tuple[list[int], Batch, ModelOutput]]:
        """Outputs of the run's base on any rows, with claimed hidden states; logits of supervised tokens if asked for.

        `size` rows share a pass; a row alone in its pass has the same bits whatever else is asked for.

        Each rank gets its share, with the places of a batch's rows in `rows`; `all_sum` puts results together.
        """

    def blob(
        self, name: str, fingerprint: JsonDict, build: Callable[[], tuple[Mapping[str, Tensor], JsonDict]]
    ) -> Blob:
        """Large tensors kept once per run in a memory-mapped file, under everything that they depend on.

        `build` makes tensors and an index when the file is not there; every rank calls it alike. Raises StateError for
        a damaged file.
        """

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks; called by every rank."""

    def reference(self, batch: Batch) -> ModelOutput:
        """Outputs of the frozen reference on `batch` without dropout, at most once per batch and micro-batch of the step."""

    def log(self, name: str, value: Tensor | float) -> None:
        """Record a scalar without waiting for the device."""

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
        """Train parameters `names` on the rows of a stream or of a list for some steps, with a fresh AdamW; every other
        tensor keeps its bits, and the stage's own moments are left alone. In `after_step` and `on_stage_end`, with the
        slot weights:edit.

        `batch` rows a step (``optim.batch``), shuffled by seed; `loss` as in `gradient_pass`; clipping, betas and eps are
        the stage's. Returns the loss of each step. A kill inside repeats the whole. Raises TrainingError inside a step,
        for a name that does not train and for a gradient that is not finite.
        """

    def end_stage(self, reason: str) -> None:
        """In `after_step`, on every rank alike: this was the last step. The stage is committed as ended early, with step
        and reason. Raises TrainingError elsewhere.
        """


class Passes(Protocol):
    """Passes over rows outside steps: without dropout, random numbers or a trace in the optimiser."""

    def forward_pass(
        self,
        source: str | Sequence[Row],
        *,
        rows: int = 8,
        limit: int | None = None,
        share: bool = False,
        change: Callable[[Batch], Batch] | None = None,
    ) -> Iterator[tuple[Batch, ModelOutput]]:
        """Batches of a stream in stored order, or of any rows, with the model's outputs: no gradients, no dropout.

        Each batch has `rows` rows, whatever ``engine.micro_batch`` is; at most `limit` rows are read. With `change` the
        model sees the changed batch, which is also what comes back. Every rank gets all of them, or with `share` its
        part, to be put together by `all_sum`.
        """

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
        """One gradient per `rows` rows of a stream or of a list, with those rows as a batch; gone after the iteration.

        `loss` is the mean token loss, or a sum and what it is counted in; None of a batch is no loss. The rows of a
        gradient are one forward and backward pass without dropout, whatever ``engine.micro_batch`` is. Every rank goes
        over all rows, or with `share` over its part of each gradient's: the same up to the order of sums. `effective`
        keeps what gradients of effective weights need (the inputs and output gradients of every adapted matrix).
        Raises TrainingError between the forward passes of a step and its update, whose gradients it would discard.
        """


class StageContext(StepContext, Passes, Protocol):
    """What stage hooks may use besides."""

    @property
    def seed(self) -> int:
        """The stage's seed."""


class PoolContext(StageContext, Protocol):
    """What a router may use at the end of a stage besides."""

    def as_member(self, member: str) -> AbstractContextManager[None]:
        """A block in which the adapter that just trained has the values of an earlier member; every rank calls it.

        Weights are back bit for bit afterwards. For routers that need ``members``: the plan then sees to it that all fit.
        """


class ProbeContext(Passes, Protocol):
    """What a probe may use: no weights."""

    @property
    def stage(self) -> Stage:
        """The stage being trained."""

    @property
    def seed(self) -> int:
        """The stage's seed."""

    @property
    def step(self) -> int:
        """Updates so far; 0 is before the first."""

    @property
    def total_steps(self) -> int:
        """Steps of the stage."""

    @property
    def data(self) -> DataContext:
        """Rows of this stage and of earlier ones."""

    @property
    def earlier(self) -> Sequence[JsonDict]:
        """What this probe has on record in this stage: ``step``, and ``values`` or ``left_out``."""

    def fits(self, rows: Sequence[Row]) -> list[RowFit]:
        """How each row's answer fits the model, teacher-forced and shared over ranks: the same on each of them."""

    def answers(self, rows: Sequence[Row], *, max_new_tokens: int) -> list[JsonDict]:
        """Greedy answers, shared over ranks: ``text``, ``tokens`` and ``truncated`` per row."""

    def score(self, task: str, rows: Sequence[Row]) -> JsonDict:
        """Greedy answers to rows of a task, scored as the run scores: ``accuracy``, ``valid`` and ``truncated`` in [0, 1]."""

    def continuations(self, rows: Sequence[Row]) -> list[JsonDict]:
        """Greedy continuation of the first half of each plain text's tokens to its whole length, without an end token.

        ``cue``, ``rest`` and ``text`` (what was made), and whether all tokens are those of the text (``exact``).
        """

    def gradient_norms(self, rows: Sequence[Row]) -> dict[str, float]:
        """Norm over all trained tensors of the task loss's gradient on a few training rows of this stage (``plasticity``),
        and of what each method adds to the loss, by its name: on these rows, on as many of the streams it opens, on weights.
        """

    def within(self, part: str, work: Callable[[], JsonDict]) -> JsonDict | None:
        """What `work` returns, if so much more keeps to the probe's share of time, by what this part took last; else None.

        What was left out is on record. Every rank calls it alike.
        """

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks; called by every rank."""


class Reporter(Protocol):
    """Where the loop tells what happens; a live display or plain log lines."""

    def progress(self, progress: Progress) -> None:
        """A step or a batch of answers is done."""

    def line(self, text: str) -> None:
        """One line for people."""


class Silent:
    """A reporter that says nothing."""

    def progress(self, progress: Progress) -> None:
        """Ignore."""

    def line(self, text: str) -> None:
        """Ignore."""
