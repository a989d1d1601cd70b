"""The run config: what a YAML file may say. Cross-field rules live beside the fields they concern."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import field_validator, model_validator

from mcit.core.config import Config, Field
from mcit.core.types import FORGET_DATA

_AMOUNT = re.compile(r"[0-9]+(\.[0-9]+)?([KMGT](IB|B)?)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A part of a folder's name; longer ones meet the limit of file systems once suffixes are added."""
_PLAIN = "use at most 100 letters, digits, '.', '_' and '-', the first a letter or digit"


class BaseConfig(Config):
    """The model that the first stage starts from."""

    family: str = "hf"
    """File name in mcit/models/families: ``hf`` (any image-text-to-text folder), ``tiny``, ``embedded``."""
    model: str | None = None
    """Folder (or hub id, when a network is there) of the base; not needed by families that build their own."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["fp32", "bf16", "nf4", "int8"] = "bf16"
    """Storage of frozen weights; trained tensors are always fp32. ``nf4`` and ``int8`` quantise the language model's
    linears through bitsandbytes; tower and projector are never quantised."""
    double_quant: bool = True
    """Quantise the scales of ``nf4`` once more (QLoRA's double quantisation)."""
    adapter: str | None = None
    """PEFT folder whose adapter is merged into the base before the first stage."""
    chat_template: str | None = None
    """File with a Jinja chat template that replaces the model's own in this run, its evaluation and its exports."""
    trust_remote_code: bool = False
    """Run Python files that the model's folder brings; only for sources you trust."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Kernel of attention; ``flash_attention_2`` needs its package and a GPU."""
    seed: int = 0
    """Seed of random weights (family ``tiny`` only)."""


class EngineConfig(Config):
    """How steps are computed. Not part of a run's identity: it may change between two starts of one run."""

    kind: Literal["plain", "zero1", "zero2", "zero3"] = "plain"
    """``plain``: one process, or DDP on several; ``zero1|2|3``: DeepSpeed, sharded over the processes."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What a ``zero`` engine keeps in host memory: optimiser state, or (``zero3``) parameters and optimiser state."""
    timeout: float = Field(1800.0, gt=0)
    """Seconds after which a collective that does not come back is an error."""
    micro_batch: int = Field(4, ge=1)
    """Rows per forward pass and rank."""
    packs: bool = True
    """Lay the rows of a micro-batch out in one sequence, without padding and with a picture that several rows show once,
    where the model's attention allows it; see docs/performance.md. Loss and gradients are the same up to rounding."""
    vision_cache: str = "off"
    """Most bytes (``4G``) of what a frozen vision tower makes of pictures, kept in the cache folder for all runs, so that a
    picture is computed once; refused where the tower trains. See docs/performance.md."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, slower."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU where there is one."""
    log_every: int = Field(1, ge=1)
    """Steps whose figures are read from the device together. Every step has its line in metrics.jsonl either way; above 1 the
    host does not wait for a GPU between them, and a loss that is not finite is told of that much later: see
    docs/performance.md."""
    workers: int = Field(2, ge=0, le=256)
    """Threads that prepare rows ahead of the step."""

    @field_validator("vision_cache", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        """YAML reads ``off`` without quotes as false."""
        if value is False or value == "off":
            return "off"
        text = str(value).upper()
        if _AMOUNT.fullmatch(text) and float(text.rstrip("KMGTIB")):
            return text
        raise ValueError("is no amount of disk: write off, or a size like 4G")


class AdapterConfig(Config):
    """What is trained in a stage, and what becomes of it in the next one."""

    kind: Literal["lora", "moe_lora", "none"] = "lora"
    """``moe_lora`` is CoIN's mixture of LoRA experts, ``none`` full fine-tuning of the language model."""
    rank: int = Field(16, ge=1)
    """Rank of each LoRA pair; of all experts of a mixture together."""
    experts: int | None = Field(None, ge=1)
    """Experts of each matrix with ``moe_lora``, a divisor of the rank; 4 if not given."""
    alpha: float = Field(32.0, gt=0)
    """The product of a pair is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a pair's inputs that are set to 0 in training."""
    rslora: bool = False
    """Scale updates by alpha over the root of the rank instead of alpha over the rank (rsLoRA)."""
    dora: bool = False
    """Always refused, with the reason: what DoRA adds cannot be exported exactly."""
    targets: str | list[str] = "language-linear"
    """``language-linear``: every linear below the decoder; or module name endings, matched at a dot."""
    also_train: list[Literal["projector", "head", "embeddings", "tower"]] = ["projector"]
    """Groups trained beside the adapter (full fine-tuning: beside the decoder)."""
    carry: Literal["merge", "keep", "stack", "pool", "none"] = "merge"
    """What becomes of the adapter in the next stage: merged into the weights, trained on, frozen below a new one,
    or (full fine-tuning) nothing. A mixture (``moe_lora``) cannot be merged and is trained on if nothing is said."""

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, data: Any) -> Any:
        own: dict[str, dict[str, Any]] = {"none": {"carry": "none"}, "moe_lora": {"carry": "keep", "experts": 4}}
        return {**own.get(str(data.get("kind")), {}), **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _carry_fits_kind(self) -> Self:
        if (self.kind == "none") != (self.carry == "none"):
            raise ValueError(f"carry: {self.carry} does not go with kind: {self.kind}")
        if (self.kind == "moe_lora") != (self.experts is not None):
            raise ValueError("experts are of kind: moe_lora, which needs their number")
        if self.kind == "moe_lora" and self.carry == "merge":
            raise ValueError(
                "carry: merge does not go with kind: moe_lora: experts weighed per token are no matrix; use keep"
            )
        if self.experts is not None and self.rank % self.experts:
            fits = [n for n in range(1, self.rank + 1) if self.rank % n == 0]
            raise ValueError(
                f"{self.experts} experts cannot share rank {self.rank} evenly; experts could be one of {fits}"
            )
        return self


Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean."""


class OptimConfig(Config):
    """Optimiser and schedule of a stage."""

    kind: Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"] = "adamw"
    """torch's AdamW, or bitsandbytes' with 8-bit moments, paged to host memory, or both."""
    moments: Literal["reset", "keep"] = "reset"
    """Where the optimiser begins: anew, or with moments and step counts of the stage before, which keeps its own for that.
    ``keep`` needs parameters that have the names they had: ``carry: keep``, or full fine-tuning."""
    batch: int = Field(16, ge=1)
    """Rows per optimiser step, over all ranks and micro-batches."""
    rows_per_image: int = Field(8, ge=1)
    """At most so many rows of one picture follow each other in an epoch's order, so that they share a forward pass; 1 is a
    plain shuffle of rows. Data with one row per picture has the same order either way."""
    lr: float = Field(2e-4, ge=0)
    """Learning rate at the top of the schedule."""
    lr_projector: float | None = Field(None, ge=0)
    """Learning rate of the projector; None uses `lr`."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of AdamW."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moments, each from 0 to below 1."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after warm-up."""
    warmup: float = Field(0.03, ge=0)
    """Below 1 a share of the stage's steps, from 1 on a number of steps."""
    warmup_from: Literal["first", "zero"] = "first"
    """Learning rate of the first step: the first part of the warm-up, or 0 as transformers' schedules have it."""
    min_lr_share: float = Field(0.0, ge=0, le=1)
    """Share of the learning rate at which the schedule ends."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the whole gradient; None leaves it as it is."""


class SliceConfig(Config):
    """Data sets that a stage is measured on besides its tasks; see docs/gates.md."""

    neighbourhood: list[str] = []
    """Recipes of rows like the stage's that should be answered as before."""
    rephrased: list[str] = []
    """Recipes that ask the stage's test rows in other words."""
    retention: list[str] = []
    """Recipes to keep beside the tasks of earlier stages, such as a general benchmark."""


_SPAN = {"share": (0, 1), "percent": (0, 100), "points": (-100, 100), "relative": (-10_000, 100)}
"""Limits that can be meant, by unit; a drop below 0 is a gain, and a relative gain may be many times what was there."""


class ThresholdConfig(Config):
    """A limit on one number; it holds by the conservative bound of the number's 95 % interval."""

    metric: Literal["success", "generalisation", "locality", "drawdown", "accuracy", "format_validity", "min_acc"]
    """What is limited: of the stage's slices, of one task (``accuracy``, ``format_validity``), or inside the stage."""
    task: str | None = None
    """The task of ``accuracy`` and ``format_validity``."""
    at_least: float | None = None
    """Lower limit, for everything but ``drawdown``."""
    at_most: float | None = None
    """Upper limit of ``drawdown``."""
    unit: Literal["share", "percent", "points", "relative"] | None = None
    """Always said: ``share`` or ``percent``; of ``drawdown`` ``points`` of 100, or ``relative``, percent of what was before."""
    first: bool = False
    """Decided before anything else is scored (the canary slice)."""

    @field_validator("at_least", "at_most", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("is a number, not true or false")
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        drop = self.metric == "drawdown"
        units = ("points", "relative") if drop else ("share", "percent")
        if self.unit is None:
            raise ValueError(f"{self.metric} has no unit: write unit: {units[0]} or unit: {units[1]}")
        if self.unit not in units:
            raise ValueError(f"{self.metric} is given in {units[0]} or {units[1]}, not in {self.unit}")
        if (self.at_most if drop else self.at_least) is None or (self.at_least if drop else self.at_most) is not None:
            raise ValueError(f"{self.metric} has {'at_most' if drop else 'at_least'} and no other limit")
        limit, (low, high) = self.at_most if drop else self.at_least, _SPAN[self.unit]
        if limit is None or not low <= limit <= high:
            raise ValueError(f"{limit:g} is no limit in {self.unit}: write a number from {low:g} to {high:g}")
        if (self.task is None) == (self.metric in ("accuracy", "format_validity")):
            raise ValueError("accuracy and format_validity name a task, other metrics none")
        return self


class GateConfig(Config):
    """A gate file: what a stage has to show before it stays."""

    thresholds: list[ThresholdConfig] = Field(min_length=1)
    """All have to pass after the stage."""
    monitor: list[ThresholdConfig] = []
    """``min_acc`` and ``drawdown`` of earlier tasks by the probe ``stability``; a limit that is crossed ends the stage."""

    @model_validator(mode="after")
    def _in_their_place(self) -> Self:
        if any(limit.metric == "min_acc" for limit in self.thresholds):
            raise ValueError("min_acc is for monitor: it is measured inside the stage")
        if any(limit.metric not in ("min_acc", "drawdown") for limit in self.monitor):
            raise ValueError("monitor has min_acc and drawdown alone")
        if any(limit.first for limit in self.monitor):
            raise ValueError("first is for thresholds: monitor is watched inside the stage")
        return self


class StageConfig(Config):
    """One position in the sequence; a key not given comes from ``defaults``."""

    name: str | None = None
    """Name in the run directory; the task's name when not given."""
    task: str | None = None
    """Names the stage where `name` is not given."""
    recipe: str | list[str]
    """Recipe name or path (from the folder of the command); several recipes are trained jointly."""
    forget: str | list[str] = []
    """Recipes whose rows are to be forgotten in this stage: stream ``forget`` of the methods that claim it."""
    alternate: str | list[str] = []
    """Recipes with other answers to the rows to forget, matched by id: refusals, or facts that take their place."""
    decouple: str | list[str] = []
    """Recipes that ask what the rows to forget ask about harmless pictures, with usual answers; matched by id."""
    holdout: str | list[str] = []
    """Recipes of rows that no stage trains on, of the kind of those to forget: what membership is measured against."""
    adapter: AdapterConfig = AdapterConfig()
    """What is trained, and what becomes of it in the next stage."""
    optim: OptimConfig = OptimConfig()
    """Optimiser and schedule."""
    epochs: int = Field(1, ge=0)
    """Passes through the stage's rows; 0 trains nothing, for methods that edit weights."""
    max_steps: int | None = Field(None, ge=1)
    """At most so many optimiser steps."""
    methods: list[dict[str, Any]] = []
    """Each ``{name: …}`` or ``{use: …}`` with the method's settings."""
    gradient_order: list[str] = []
    """Order of methods that edit gradients, needed when there is more than one."""
    slices: SliceConfig = SliceConfig()
    """What the stage is measured on besides."""
    gate: str | None = None
    """File of thresholds that the stage has to pass before the next one begins; see docs/gates.md."""

    @field_validator("recipe")
    @classmethod
    def _some_recipe(cls, value: str | list[str]) -> str | list[str]:
        if not value or not all(value):
            raise ValueError("name at least one recipe")
        return value

    @field_validator(*FORGET_DATA)
    @classmethod
    def _no_recipe_twice(cls, value: str | list[str]) -> str | list[str]:
        twice = [] if isinstance(value, str) else [recipe for recipe in value if value.count(recipe) > 1]
        if twice:
            raise ValueError(f"name '{twice[0]}' once")
        return value

    @field_validator("name", "task")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError(_PLAIN)
        return value

    @property
    def recipes(self) -> list[str]:
        """The recipes of this stage, always as a list."""
        return [self.recipe] if isinstance(self.recipe, str) else list(self.recipe)

    def recipes_of(self, key: str) -> list[str]:
        """The recipes of one of FORGET_DATA, always as a list."""
        named = getattr(self, key)
        return [named] if isinstance(named, str) else list(named)


class VllmConfig(Config):
    """How answers are made with ``eval.backend: vllm``; see docs/scorers.md."""

    memory_share: float = Field(0.45, gt=0, le=1)
    """Share of the GPU's memory for vLLM's weights and cache; the model of the run stays there beside it."""
    max_length: int | None = Field(None, ge=1)
    """Longest sequence, answer included; None is the model's own limit."""
    compare: int = Field(16, ge=0)
    """Rows per task that are answered by the own backend too; how many answers differ is recorded."""


class JudgeConfig(Config):
    """A model that judges answers, behind an endpoint that speaks OpenAI's chat completions."""

    url: str
    """Address up to and including ``/v1``."""
    model: str
    """The model's name there."""
    key_env: str = ""
    """Environment variable that holds the key; nothing of it is written anywhere."""


class KitConfig(Config):
    """What is measured of a forget stage beside accuracy, before and after it and after every later stage."""

    rows: int = Field(64, ge=2)
    """At most so many rows per set, drawn by the run's seed."""
    perturbed: int = Field(3, ge=1)
    """Wrong answers per row that the truth ratio compares with, where the data has none."""
    membership: list[Literal["loss", "zlib", "min_k", "min_k_plus", "reference", "gradnorm"]] = [
        "loss",
        "zlib",
        "min_k",
        "min_k_plus",
        "reference",
    ]
    """Attacks that tell trained rows from the stage's holdout; ``reference`` loads the base too, ``gradnorm`` runs one
    backward pass per row."""
    four_bit: bool = False
    """Measure once more with the language model's linears rounded to nf4 and back."""
    judge: JudgeConfig | None = None
    """Judges answers beside the rules."""


class EvalConfig(Config):
    """What is scored after each stage."""

    tasks: Literal["seen", "all", "none"] | list[str] = "seen"
    """Tasks scored after a stage: those trained so far, all of the run, none, or a list of names."""
    base: bool = False
    """Also score every task with the base model before the first stage."""
    batch: int = Field(32, ge=1)
    """Most rows of a generated batch."""
    tokens: int = Field(24576, ge=1)
    """Most tokens of a batch, prompts with picture tokens and ``max_new_tokens`` per row: a batch with more is divided, which
    bounds memory."""
    share_prefix: Literal["auto", "off"] = "auto"
    """Rows go through the model as one sequence, each picture once, and leave when they have finished; ``off`` pads batches and
    calls ``generate``, which is also done where a model does not take packs (docs/performance.md)."""
    options: Literal["generate", "forward"] = "generate"
    """``forward``: a row that states options (letters, yes or no, choices) is answered by the likeliest of them and nothing is
    written, where the task's scorer allows it; see docs/scorers.md."""
    rows: int | None = Field(None, ge=1)
    """At most so many test rows per task, the first in the recipe's order."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Replaces each task's own limit."""
    mode: Literal["strict", "fixed"] = "strict"
    """Scorer mode of the matrix; both are always stored."""
    filters: list[str | dict[str, Any]] = []
    """What changes answers before they are scored, in order: a filter's name, or ``{use: …}`` with its settings."""
    backend: Literal["own", "vllm"] = "own"
    """What makes the answers: the model of the run itself, or vLLM (extra ``vllm``, one process, a GPU)."""
    vllm: VllmConfig = VllmConfig()
    """Settings of ``backend: vllm``."""
    kit: KitConfig | None = None
    """Measure forget stages more closely than by accuracy; `mcit eval RUN --kit` does so later. See docs/forgetting.md."""
    validate_every: int = Field(0, ge=0)
    """Score the validation split every so many steps inside a stage; 0 is never."""

    @field_validator("share_prefix", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """YAML reads ``off`` without quotes as false."""
        return "off" if value is False else value


class CheckpointConfig(Config):
    """Live checkpoints inside a stage. Not part of a run's identity."""

    every: int = Field(100, ge=0)
    """Steps between two checkpoints; 0 makes none but on a signal."""
    keep: int = Field(2, ge=1)
    """Newest live checkpoints that are kept."""


class RunConfig(Config):
    """A whole run: one base, stages in order."""

    name: str
    """Begins the name of the run's folder."""
    seed: int = 0
    """Every random choice of the run is derived from it."""
    base: BaseConfig = BaseConfig()
    """The model that the first stage starts from."""
    engine: EngineConfig = EngineConfig()
    """How steps are computed."""
    stages: list[StageConfig] = Field(min_length=1)
    """What is trained, in order."""
    eval: EvalConfig = EvalConfig()
    """What is scored after each stage, and how."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Live checkpoints inside a stage."""
    probes: list[dict[str, Any]] = []
    """What is measured inside every stage, each ``{use: …}`` with the probe's settings."""
    without: list[str] = []
    """Recipes whose rows are left out of every stage's training data: a gold run, see `mcit gold`."""
    router: dict[str, Any] | None = None
    """Who chooses among the adapters of a pool (``carry: pool``): ``{use: …}`` with the router's settings."""
    track: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Trackers that are told every metric; each needs the extra of its name. Not part of a run's identity."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(_PLAIN)
        return value


NOT_IDENTITY = frozenset({"engine", "checkpoint", "track"})
"""Sections that may differ between two starts of the same run."""
