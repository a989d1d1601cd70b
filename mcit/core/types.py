"""The nouns that layers share. Frozen; no torch at import time.

Shapes: B rows of a batch, T positions, N supervised tokens of a batch, V vocabulary, D hidden, O/I out/in features, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mcit.core.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

    from mcit.core.schema import AdapterConfig, OptimConfig, RunConfig

JsonDict = dict[str, Any]
Draw = tuple[int, int]
"""Number of a row in its stream, and number of a view of it; view 0 is the row itself."""
FORGET_DATA = ("forget", "alternate", "decouple", "holdout")
"""Keys of a stage that name recipes beside its task, each a tuple of TaskSpec of the planned stage."""
ALL_ENGINES = frozenset({"plain", "zero1", "zero2", "zero3"})


# ---- rows -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `text` holds a literal ``<image>`` where an image stands."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class PictureChange:
    """A change of a row's pictures before the processor; kinds and their values are in `mcit.data.augment`."""

    kind: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a row becomes tokens and pixels, where that is not what the encoder does by default."""

    raw: bool = False
    """A plain text: one assistant turn of which every token is supervised, without a chat template."""
    bos: bool = False
    """Put the start token in front of a plain text."""
    max_tokens: int | None = None
    """Cut a plain text off after so many tokens, start token included."""
    pad_image: bool = False
    """Pad pictures to squares."""
    changes: tuple[PictureChange, ...] = ()
    """Applied to every picture of the row, in order."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training or test row: a system turn or none, then user and assistant in turn, the assistant last.

    A plain text (``encoding.raw``) is one assistant turn.
    """

    id: str
    images: tuple[str, ...]
    """Paths relative to `root`, in the order of the ``<image>`` placeholders."""
    turns: tuple[Turn, ...]
    task: str
    source: str
    """``file:line`` where the row came from."""
    style: str = ""
    """Answer style: letter, word, name, yes_no, phrase, box, text, or an ASD style."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What scoring and transforms need: choices, answers, box, class, …"""
    root: str = ""
    """Image root; set when a data folder is opened, not stored with the row."""
    encoding: Encoding = Encoding()

    @property
    def where(self) -> str:
        """``file:line:id``, for messages."""
        return f"{self.source}:{self.id}"

    @property
    def answer(self) -> str:
        """The last assistant turn: the gold answer of a test row."""
        return self.turns[-1].text

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        """The turns without the system turn."""
        return self.turns[1:] if self.turns[0].role == "system" else self.turns

    @property
    def question(self) -> str:
        """The last user turn, placeholders included; empty for a plain text."""
        return self.turns[-2].text if len(self.turns) > 1 else ""


@dataclass(frozen=True, slots=True)
class Sample:
    """An encoded row. `input_ids_T` and `labels_T` are int64; `labels_T` is -100 where nothing is supervised."""

    row: Row
    input_ids_T: Tensor
    labels_T: Tensor
    pixels: Mapping[str, Tensor]
    """What the processor made beside the tokens, by its own names: first axis = images (or their patches), but for the
    names in `token_keys`, first axis = T, and in `row_keys`, first axis = 1."""
    image_T: Tensor | None = None
    """True at positions that stand for an image; None where there is none."""
    token_keys: frozenset[str] = frozenset()
    """Names in `pixels` with one value, or one table of values, per token."""
    row_keys: frozenset[str] = frozenset()
    """Names in `pixels` whose first axis is the row, whatever number of images it has."""
    view: int = 0
    """Which view of its stream's row this is; 0 is the row itself."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one stream, padded to one length."""

    stream: str
    rows: tuple[Row, ...]
    input_ids_BT: Tensor
    labels_BT: Tensor
    attention_BT: Tensor
    pixels: Mapping[str, Tensor]
    target_count: int
    """Supervised tokens of the batch."""
    image_BT: Tensor | None = None
    """True at positions that stand for an image; None where no row has one."""
    views: tuple[int, ...] = ()
    """Which view each row is; 0 is the row itself. Empty where a batch was made by hand."""
    until: str = ""
    """The layer that the forward pass ends after; empty is a whole one."""
    row_keys: frozenset[str] = frozenset()
    """Names in `pixels` whose first axis is B."""

    @property
    def row_ids(self) -> tuple[str, ...]:
        """Ids of the rows, in order."""
        return tuple(row.id for row in self.rows)

    @property
    def answer_BT(self) -> Tensor:
        """True at the supervised tokens themselves."""
        return self.labels_BT != -100

    @property
    def prompt_BT(self) -> Tensor:
        """True at every token that is neither supervised nor padding, image positions included."""
        return self.attention_BT.bool() & ~self.answer_BT

    @property
    def predicts_BT(self) -> Tensor:
        """True at the positions that predict a supervised token: N of them, in the order of `ModelOutput.targets_N`."""
        answer_BT = self.answer_BT
        predicts_BT = answer_BT.roll(-1, 1)
        predicts_BT[:, -1] = False
        return predicts_BT


class HiddenStates(dict[str, "Tensor"]):
    """Hidden states by layer; one that nobody claimed is named."""

    def __missing__(self, layer: str) -> Tensor:
        raise TrainingError(
            f"the forward pass kept no hidden states of layer '{layer}'",
            where="method",
            fix=f"claim needs hidden:{layer}",
        )


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a forward pass leaves for losses: logits only where a supervised token is predicted."""

    logits_NV: Tensor
    targets_N: Tensor
    row_N: Tensor
    """Position in the batch of the row that each supervised token belongs to."""
    nll_N: Tensor
    """Negative log-likelihood of each supervised token, fp32."""
    hidden: Mapping[str, Tensor] = field(default_factory=HiddenStates)
    """(B, T, D) by layer, for what methods claim as ``hidden:<layer>``. Raises TrainingError for another layer."""
    real_rows: tuple[int, ...] = ()
    """Places of the rows with a supervised token. A batch may hold others (a rank without rows left gets one that nothing
    is learned from): losses counted in rows skip them."""

    @property
    def hidden_BTD(self) -> Tensor:
        """Hidden states after the final norm (``hidden:last``). Raises TrainingError if none were claimed."""
        return self.hidden["last"]


@dataclass(frozen=True, slots=True)
class RowFit:
    """How a row's answer fits the model, teacher-forced, fp32."""

    nll: float
    """Mean negative log-likelihood of an answer token, end token included."""
    tokens: int
    right: int
    """Answer tokens that are the likeliest one at their place."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss as a sum together with what it is counted in; the loop divides by that count over the whole step."""

    sum: Tensor
    per: Literal["tokens", "rows"] = "tokens"


@dataclass(frozen=True, slots=True)
class Counts:
    """Supervised tokens and rows per stream over a whole optimiser step, all ranks and micro-batches."""

    tokens: Mapping[str, int]
    rows: Mapping[str, int]

    @classmethod
    def of_batch(cls, batch: Batch) -> Counts:
        """Those of one batch."""
        real = int((batch.labels_BT[:, 1:] != -100).any(1).sum())
        return cls({batch.stream: batch.target_count}, {batch.stream: real})

    def of(self, stream: str, per: str) -> int:
        """The normaliser of a loss sum; at least 1."""
        return max(1, (self.tokens if per == "tokens" else self.rows).get(stream, 0))


# ---- weights --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class WeightUnit:
    """The smallest group of tensors a method needs together.

    ``lora``: roles ``A`` (R, I) and ``B`` (O, R) of one adapted matrix. ``tensor``: role ``weight``, one trained tensor.
    ``block``: the LoRA pairs of one transformer block, roles ``<module>:A`` and ``<module>:B``; beside the other two kinds,
    which together are every trained tensor once, and named only by those who ask for it.
    """

    name: str
    kind: Literal["lora", "tensor", "block"]
    params: Mapping[str, str]
    """Role to parameter name."""
    shape: tuple[int, ...]
    """Shape of the effective weight: (O, I) of the adapted matrix, or the tensor's own; (P,) trained numbers of a block."""
    scale: float = 1.0
    """alpha / rank of a LoRA pair."""
    block: str = ""
    """The transformer block it belongs to, for methods that group."""


SLOTS = frozenset({"objective:task", "trainable-mask", "weights:edit", "weights:prox", "optimiser", "step:passes"})
"""What one method of a stage may hold at a time."""
STREAM_SLOTS = ("order:", "choose:")
"""Slots of one stream, written ``order:<stream>``."""
SHARED = frozenset({"forget"})
"""Streams that several methods of a stage may open, with equally many rows per step."""
WRITES = frozenset({"weights:edit", "weights:prox", "step:passes"})
"""Slots that allow ``ctx.weights.edit``."""


@dataclass(frozen=True)
class Claims:
    """What a method says about itself before any model exists; it may follow from its settings (a property)."""

    slots: frozenset[str] = frozenset()
    """Held exclusively: one of SLOTS, or of STREAM_SLOTS with a stream's name."""
    needs: frozenset[str] = frozenset()
    """adapter:lora, carry:merge, hidden:<layer>, reference:stage_start, reference:base, dtype:full; stream:<name> says that
    another method of the stage opens it, names:kept that the method keeps tensors by parameter name over stages."""
    streams: frozenset[str] = frozenset()
    groups: Mapping[str, int] = field(default_factory=dict)
    """By stream, how many rows that follow each other in its order share a micro-batch on one rank."""
    engines: frozenset[str] = ALL_ENGINES


@dataclass(frozen=True)
class StreamSpec:
    """Rows that a method adds to every step of a stage, or keeps for passes of its own."""

    rows: Sequence[Row]
    per_step: int = 0
    """Rows per optimiser step, over all ranks, on top of the task's; 0 is a stream that only passes read."""
    mixed: bool = False
    """Shuffle the rows into the task's order instead: a step takes ``optim.batch`` rows of both, each row once an epoch."""
    total: int | None = None
    """Draws of the stage after which the stream is empty; None: never."""
    follows: str = ""
    """The stream whose order it has: with equally many rows and rows per step, rows of one place come in one step."""
    until: str = ""
    """End the forward pass of these rows after this layer (see ``hidden:<layer>``): no logits, later blocks do not run."""


# ---- plan -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MethodSpec:
    """A method of a stage with its checked settings."""

    name: str
    config: Any
    """An instance of the method's Config."""


@dataclass(frozen=True)
class ProbeSpec:
    """A probe of a run with its checked settings."""

    name: str
    config: Any
    """An instance of the probe's Config."""


@dataclass(frozen=True)
class RouterSpec:
    """The router of a run's pool with its checked settings."""

    name: str
    config: Any
    """An instance of the router's Config."""
    joins: bool = False
    """Whether it may let a stage go on training an earlier adapter."""
    members: bool = False
    """Whether it reads rows under earlier adapters when it learns."""


@dataclass(frozen=True)
class TaskSpec:
    """A data set with a scorer, built from one recipe."""

    name: str
    recipe: str
    folder: Path
    """Content-addressed folder of the built recipe."""
    digest: str
    """Digest of the recipe text and its sources."""
    rows: Mapping[str, int]
    """Rows per split."""
    scorer: str
    style: str
    max_new_tokens: int
    gone: bool = False
    """Of a request to forget whose data were deleted: known is what a run recorded, there are no rows."""


@dataclass(frozen=True)
class PoolSize:
    """How large a data set beside the tasks is, before anything of it is encoded whole."""

    rows: int
    sampled: tuple[tuple[int, int], ...]
    """Positions (tokens and image slots) and supervised tokens of some rows drawn at random."""

    def positions(self, *, longest: int, supervised: bool = False) -> int:
        """Of all rows, or their supervised tokens alone, from the mean of the sampled ones, each cut at `longest`."""
        sizes = [min(size[supervised], longest) for size in self.sampled]
        return round(self.rows * sum(sizes) / max(1, len(sizes)))


@dataclass(frozen=True)
class GateSpec:
    """The gate of a stage, as it was when the plan was made."""

    file: str
    sha256: str
    config: Any
    """A GateConfig."""


@dataclass(frozen=True)
class Slices:
    """Data sets that a stage is measured on besides its tasks."""

    neighbourhood: tuple[TaskSpec, ...] = ()
    """Like the stage's rows, to be answered as before."""
    rephrased: tuple[TaskSpec, ...] = ()
    """The stage's test rows in other words."""
    retention: tuple[TaskSpec, ...] = ()
    """To be kept, beside the tasks of earlier stages."""

    @property
    def before(self) -> tuple[TaskSpec, ...]:
        """What has to be scored before the stage too."""
        return (*self.neighbourhood, *self.retention)

    @property
    def every(self) -> tuple[TaskSpec, ...]:
        """All of them."""
        return (*self.before, *self.rephrased)


@dataclass(frozen=True)
class Stage:
    """One position in the sequence, resolved."""

    index: int
    """From 1."""
    name: str
    tasks: tuple[TaskSpec, ...]
    methods: tuple[MethodSpec, ...]
    adapter: AdapterConfig
    optim: OptimConfig
    epochs: int
    steps: int
    rows: int
    """Training rows of all tasks of the stage."""
    seed: int
    gradient_order: tuple[str, ...] = ()
    forget: tuple[TaskSpec, ...] = ()
    """Data sets to be forgotten in this stage; their rows are stream ``forget``."""
    alternate: tuple[TaskSpec, ...] = ()
    """Other answers to the rows to forget; may instead stand in their ``meta.alternate``."""
    decouple: tuple[TaskSpec, ...] = ()
    """What the rows to forget ask, about harmless pictures; may instead stand in their ``meta.decouple``."""
    holdout: tuple[TaskSpec, ...] = ()
    """Rows like those to forget that no stage trains on, beside rows to forget with ``meta.holdout``."""
    pools: tuple[TaskSpec, ...] = ()
    """Data sets that methods read beside the tasks, such as general samples."""
    slices: Slices = Slices()
    """What it is measured on besides."""
    gate: GateSpec | None = None
    """What it has to show before it stays."""

    @property
    def folder(self) -> str:
        """Name in the run directory: ``01-scienceqa``."""
        return f"{self.index:02d}-{self.name}"


@dataclass(frozen=True)
class Plan:
    """Everything a run does, resolved and checked, before any weights are loaded."""

    config: RunConfig
    stages: tuple[Stage, ...]
    tasks: tuple[TaskSpec, ...]
    """Every task of the sequence, in order of first appearance: the columns of the score matrix."""
    model_path: Path
    """Local folder of the base in HF layout."""
    digest: str
    """Identity of the run: the resolved config without the sections that may change."""
    notes: tuple[str, ...] = ()
    probes: tuple[ProbeSpec, ...] = ()
    """What is measured inside every stage."""
    router: RouterSpec | None = None
    """Who chooses among the adapters of a pool."""
    forget_tasks: tuple[TaskSpec, ...] = ()
    """Every data set that some stage forgets, in order; scored beside the matrix, never in it."""
    slice_tasks: tuple[TaskSpec, ...] = ()
    """Every data set of a slice that is no task of the matrix; scored before or after its stage alone."""
    roomy: bool = False
    """Whether it trains in host memory that surely suffices: then no batch is rehearsed."""

    def up_to(self, index: int) -> tuple[Stage, ...]:
        """The first stages, that of this number included; a plan without rejected stages has gaps in its numbers."""
        return tuple(stage for stage in self.stages if stage.index <= index)

    def below(self, index: int) -> int:
        """Number of the stage that the one of this number is trained on; 0 for the base."""
        return max((stage.index for stage in self.stages if stage.index < index), default=0)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for live display."""

    stage: int
    stages: int
    name: str
    phase: Literal["start", "train", "end", "eval", "export"]
    """``start`` and ``end`` are passes of methods around the training of a stage."""
    done: int
    total: int
    loss: float | None = None
    tokens_per_s: float | None = None
    left_stage_s: float | None = None
    left_total_s: float | None = None
