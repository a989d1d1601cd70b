"""What the files of a run must hold: one schema for each of them, for all that read them.

How they are read, with their checksums, is in `mcit.core.stored`. A schema names what readers rely on; where a model
allows more, that is for people (a plan, an event, an export), and its checksum covers it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _inside(path: str) -> str:
    if {"", ".", ".."} & set(path.split("/")) or "\0" in path:  # an absolute path begins with an empty part
        raise ValueError("is no path below the folder")
    return path


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Percent = float
"""A number of percent, or of points between two of them."""
Share = Annotated[float, Field(ge=0, le=1)]
Below = Annotated[str, AfterValidator(_inside)]
"""A path relative to a folder, and inside it."""
Folder = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)] | None


class Record(BaseModel):
    """Content of a file: nothing is converted, nothing unknown accepted, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    what: ClassVar[str]
    """What the file is, for messages."""
    fix: ClassVar[str] = "restore the file from a copy, or remove its folder and run again"


class Entry(Record):
    """One file of a manifest."""

    what = "an entry of a manifest"
    bytes: Count
    sha256: Sha256


class Manifest(Record):
    """``manifest.json``: every other file of its folder."""

    what = "a manifest"
    files: dict[Below, Entry]


class ExportRecord(Manifest):
    """``export.json``: a manifest, what was exported, and how far the reloaded model is from the trained one."""

    model_config = ConfigDict(extra="allow")

    what = "the record of an export"
    fix = "remove the folder and export again"
    kind: Literal["adapter", "delta", "merged", "pool", "guard"]
    run: str
    base: str
    base_sha256: Sha256
    stages: list[Folder]
    lineage: Sha256


class DataManifest(Manifest):
    """``manifest.json`` of a built data folder: what it was built from, and its rows by split."""

    model_config = ConfigDict(extra="allow")

    what = "a manifest of a data set"
    fix = "remove the data folder: it is built again from the recipe"
    name: str
    task: str
    digest: Sha256
    eval: dict[str, Any]
    image: dict[str, Any]
    roots: dict[str, str | None]
    counts: dict[str, Count]


# ---- the run ---------------------------------------------------------------------------------------------------------
class StageRecord(Record):
    """A stage in ``plan.json``."""

    model_config = ConfigDict(extra="allow")

    what = "a stage of a plan"
    index: Annotated[int, Field(ge=1)]
    name: str
    folder: Folder
    tasks: list[str]
    forget: list[str]
    alternate: list[str] = []
    decouple: list[str] = []
    holdout: list[str] = []
    steps: Count
    rows: Count
    seed: int
    carry: str
    hooks: dict[str, list[str]]
    method_state: dict[str, int]
    passes: Annotated[float, Field(gt=0)]


class Scoring(Record):
    """How a task is scored, in ``plan.json``."""

    what = "the scoring of a task"
    scorer: str
    style: str


class PlanRecord(Record):
    """``plan.json``."""

    model_config = ConfigDict(extra="allow")

    what = "a plan of a run"
    name: str
    digest: Sha256
    code: str
    base: str
    base_sha256: Sha256
    chat_template_sha256: Sha256 | None
    tasks: list[str]
    forget_tasks: list[str]
    recipes: dict[str, str]
    scorers: dict[str, Scoring]
    sources: dict[str, str]
    stages: list[StageRecord]
    scorer_mode: Literal["strict", "fixed"]


class Environment(Record):
    """``environment.json``: versions by package, machine and devices."""

    model_config = ConfigDict(extra="allow")

    what = "a record of versions and devices"
    versions: dict[str, str | None]


class Event(Record):
    """A line of ``ledger.jsonl``."""

    model_config = ConfigDict(extra="allow")

    what = "an event"
    time: str
    event: str
    previous: Sha256 | None = None
    """Of the line before; a ledger that an older mcit began lacks it."""

    @model_validator(mode="after")
    def _has_its_fields(self) -> Self:
        extra: dict[str, Any] = self.model_extra or {}
        changes, removed = extra.get("changes"), extra.get("removed")
        if self.event in ("accepted_changes", "layout") and not (
            isinstance(changes, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in changes.values())
        ):
            raise ValueError("says no changes")
        if self.event == "rollback" and not isinstance(removed, list):
            raise ValueError("says nothing that was removed")
        files = extra.get("files", {})
        if self.event in ("created", "extended") and not isinstance(files, dict):
            raise ValueError("says no checksums of files")
        needed = {"extended": "digest", "branched": "run", "forgotten": "certificate"}.get(self.event)
        if needed and not isinstance(extra.get(needed), str):
            raise ValueError(f"says no {needed}")
        return self


class Holder(Record):
    """``lock.json``: the process that writes the run."""

    what = "a record of a process"
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    host: str


# ---- a stage ---------------------------------------------------------------------------------------------------------
class EndRecord(Record):
    """Why a stage ended before its last step."""

    what = "the end of a stage"
    step: Count
    planned: Count
    reason: str


class ProgressRecord(Record):
    """``progress.json`` of a committed stage; `logged` is what methods recorded at its end."""

    what = "the progress of a stage"
    ended: EndRecord | None = None
    logged: dict[str, float | None] = {}
    steps: Count
    tokens: Count
    seconds: Annotated[float, Field(ge=0)]
    loss: float | None
    trained: Count | None = None
    """Trained parameters; a stage of an older mcit lacks this and the next."""
    peak_bytes: Count | None = None
    """Most memory of rank 0's process while the stage trained: of tensors on a GPU, of all of it on a CPU."""
    drift: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Root mean square change of each adapted matrix in the stage."""


class StageProfile(Record):
    """What a command did for one stage, for ``base``, or before the first (``start``); tokens are of all ranks."""

    what = "what a stage took"
    name: str
    seconds: dict[str, Annotated[float, Field(ge=0)]]
    steps: Count
    tokens: Count
    counted_steps: Count
    """Steps whose FLOPs were counted; tokens, seconds and FLOPs of these."""
    counted_tokens: Count
    counted_seconds: Annotated[float, Field(ge=0)]
    flops: Count
    peak_bytes: Count | None


class ProfiledStart(Record):
    """A command with ``--profile``; `matmul_flops` a second, of one process."""

    what = "the profile of a command"
    began: str
    device: str
    dtype: Literal["fp32", "bf16"]
    threads: Annotated[int, Field(ge=1)]
    processes: Annotated[int, Field(ge=1)]
    matmul_flops: Annotated[int, Field(ge=1)]
    stages: list[StageProfile]


class ProfileRecord(Record):
    """``profile.json``."""

    what = "a profile"
    fix = "restore it from a copy, or remove it: it says where time went, and nothing depends on it"
    starts: list[ProfiledStart]


class DeltaRecord(Record):
    """A stage below, in ``lineage.json``."""

    what = "a stage of a lineage"
    folder: Folder
    kind: Literal["lora", "moe_lora", "none"]
    carry: Literal["merge", "keep", "stack", "pool", "none"]
    digest: Sha256


class LineageRecord(Record):
    """``lineage.json``: base, stages below, and what this stage added."""

    what = "a lineage"
    base: str
    base_sha256: Sha256
    kind: Literal["lora", "moe_lora", "none"]
    carry: Literal["merge", "keep", "stack", "pool", "none"]
    digest: Sha256
    stages: list[DeltaRecord]


class PoolRecord(Record):
    """``pool.json``: which adapter a stage trained, and where each adapter of the pool was trained last."""

    what = "a record of a pool"
    member: Folder
    members: list[list[Folder]]


class AdapterNote(Record):
    """``mcit.json`` beside an adapter of ours: live module names, and pairs left out because they are exactly 0."""

    what = "a note beside an adapter"
    names: Literal["live"]
    base_sha256: Sha256
    zero: list[str] = []
    stages: list[str] = []
    relative_to: str | None = None


class AdapterConfig(Record):
    """The part of PEFT's ``adapter_config.json`` that reports read."""

    model_config = ConfigDict(extra="allow")

    what = "a PEFT config"
    target_modules: list[str]


class MethodState(Record):
    """``methods/<name>/state.json``."""

    what = "the state of a method"
    state_version: int
    state: dict[str, Any]


class Reference(Record):
    """``stages/<stage>.json``: a stage of another run, by its folder and the checksum of its manifest."""

    what = "a reference to a stage of another run"
    fix = "restore it from a copy, or remove it: the stage is then trained again in this run"
    stage: str
    manifest_sha256: Sha256


class GateResult(Record):
    """A threshold of a gate with what was found, in the threshold's unit."""

    what = "a threshold of a gate"
    metric: str
    task: str | None
    unit: Literal["share", "percent", "points", "relative"]
    at_least: float | None
    at_most: float | None
    first: bool
    estimate: float | None
    interval: Interval
    n: Count
    verdict: Literal["pass", "fail", "inconclusive", "not measured"]


class GateRecord(Record):
    """``gates/<stage>.json``: what the gate of a stage found, and who decided on it when."""

    what = "the record of a gate"
    fix = "restore it from a copy; without it the stage is trained again"
    stage: Folder
    index: Annotated[int, Field(ge=1)]
    gate_sha256: Sha256
    """Of the gate file, as frozen in plan.json before training."""
    stage_sha256: Sha256
    """Of the manifest of the stage that was judged."""
    before_sha256: Sha256
    """Of the manifests of all stages below: the point to go back to, weights and method state together."""
    verdict: Literal["pass", "fail", "inconclusive"]
    results: list[GateResult]
    ended: EndRecord | None
    """Where the monitor ended the stage."""
    decision: Literal["promoted", "aside", "rejected"]
    by: Annotated[str, Field(min_length=1)]
    """``gate``, or the name that was given."""
    time: str


class CertificateRecord(Record):
    """``certificates/stages/<stage>.json``: fields F1 to F7 of arXiv:2509.18868, chapter 5, of a stage that stands."""

    what = "the certificate of a stage"
    fix = "restore it from a copy, or remove it: the next command on the run issues one anew"
    run: str
    """Id of the run, from the first line of its ledger."""
    stage: Folder
    index: Annotated[int, Field(ge=1)]
    id: Sha256
    """Of everything but times, checksums that hold times, and the log: equal where the same stage was trained again."""
    target: dict[str, Any]
    time: dict[str, Any]
    method: dict[str, Any]
    verification: dict[str, Any]
    regression: dict[str, Any]
    rollback: dict[str, Any]
    audit: dict[str, Any]
    issued: str


class RequestRecord(Record):
    """``certificates/NNNN/certificate.json``: a request to forget rows, and what is left in every head."""

    what = "the certificate of a request to forget"
    fix = "restore it from a copy"
    rows: list[dict[str, str]]
    """``id``, ``task`` and ``key`` of each."""
    limit: float
    heads: list[dict[str, Any]]
    gamma: dict[str, float]
    not_covered: list[str]
    """Exports that were there before."""
    features_sha256: Sha256 | None = None
    """Of ``features.safetensors`` beside it; a certificate of an older mcit lacks it."""


class StatementRecord(Record):
    """``certificates/statement.json``: what a signature covers."""

    what = "a statement to sign"
    fix = "restore it from a copy, or sign again: mcit audit RUN --sign KEY"
    run: str
    lines: Annotated[int, Field(ge=1)]
    """Of the ledger when it was signed."""
    last_sha256: Sha256
    """Of the last of them, which is chained to all before it."""
    certificates: dict[str, Sha256]


# ---- a live checkpoint -----------------------------------------------------------------------------------------------
class StreamsRecord(Record):
    """``streams.json``: rows drawn from each stream, and what the loop counts."""

    what = "a record of streams"
    step: Count
    cursors: dict[str, int]
    extra: dict[str, Any]


class EngineRecord(Record):
    """``engine.json``: the step, and optimiser steps of parameters that have another count."""

    what = "a record of an engine"
    step: Count
    optimizer_steps: dict[str, Count]
    format: Literal[1]


class MomentsRecord(Record):
    """``optimizer.json`` of a stage that leaves its optimiser to the next: steps of each parameter that has moments."""

    what = "a record of an optimiser"
    steps: dict[str, Count]
    format: Literal[1]


class BlobRecord(Record):
    """``blobs/<name>.json`` beside its tensors."""

    what = "the record of a blob"
    fingerprint: dict[str, Any]
    bytes: Count
    sha256: Sha256
    index: dict[str, Any]


# ---- scores ----------------------------------------------------------------------------------------------------------
class Generation(Record):
    """``generation.json``: how ``predictions.jsonl`` was made, and its checksum."""

    what = "a record of predictions"
    fix = "remove it: the answers are made again"
    settings: dict[str, Any]
    rows: Count
    sha256: Sha256
    chosen: Count | None = None
    """Rows whose answer was chosen among their options; with ``eval.options: forward``."""


class Backend(Record):
    """``backend.json``: what made the answers, and in how many of so many rows the run's own backend differs from it."""

    what = "a record of what made the answers"
    backend: str
    version: str
    compared: Count
    different: Count
    ids: list[str]


class Prediction(Record):
    """A line of ``predictions.jsonl``."""

    what = "a prediction"
    id: str
    index: Count
    text: str
    tokens: Count | None
    truncated: bool | None
    question: str
    gold: dict[str, Any]
    member: str | None = None
    """The adapter of a pool that answered."""
    near_tie: Count | None = None
    """Number of the first token whose two best scores lie within 1e-4; absent where scores were not seen. 0 where an answer was
    chosen among options and the two likeliest lie within 1e-4."""
    options: Count | None = None
    """Among how many options the answer was chosen; absent where it was written."""
    refused_option: str | None = None
    """An option of the row that cannot be an answer of the model, so that the answer was written."""


class Likelihood(Record):
    """A line of log-probabilities, kept as predictions are."""

    what = "log-probabilities of an answer"
    id: str
    index: Count
    logprobs: list[float]
    hits: list[bool]
    mean: list[float]
    variance: list[float]
    body: Count


class KitRecord(Record):
    """``kit.json``: what the forgetting kit found of one stage under one model."""

    model_config = ConfigDict(extra="allow")

    what = "what the forgetting kit found"
    fix = "remove it: it is measured again"
    settings: Sha256
    lineage: str
    forget: dict[str, Any]
    truth: list[float]
    membership: dict[str, float]
    near: dict[str, dict[str, Any]]
    probability: dict[str, float]


class AttackRecord(Record):
    """``<kind>.json`` of an attack on a forget stage; accuracies in percent."""

    what = "what came of an attack"
    fix = "remove it: the attack is made again"
    stage: Folder
    kind: Literal["unload", "relearn", "neighbour", "benign"]
    before: Percent | None
    forgotten: Percent | None
    possible: bool
    """Whether there was anything to attack: an adapter that was merged cannot be unloaded."""
    settings: dict[str, float]
    results: list[dict[str, Any]]
    controls: dict[str, list[dict[str, Any]]]
    area: float | None = None


class Verdict(Record):
    """A line of ``verdicts.jsonl``: what a judge said of a question with its answer, by their digest."""

    what = "a verdict"
    key: Sha256
    kind: Literal["refusal", "gibberish", "unsafe", "normal"]


class PartHead(Record):
    """The first line of ``predictions.part.jsonl``."""

    what = "the head of unfinished predictions"
    identity: str


class PartBatch(Record):
    """Another line of it: a finished batch."""

    what = "a batch of predictions"
    batch: Count
    rows: list[Prediction | Likelihood]


class ModeScore(Record):
    """A score under one scorer mode."""

    what = "a score under one mode"
    accuracy: Percent
    interval: Interval
    accuracy_on_valid: Percent | None
    constant: Percent
    constant_answer: str
    kappa: float | None


class ScorerName(Record):
    """Which scorer made a score."""

    what = "the name of a scorer"
    name: str
    version: int
    strict_rule: str


class AnyScore(Record):
    """What every ``score.json`` holds; `rows_sha256` is the checksum of ``rows.json``."""

    model_config = ConfigDict(extra="allow")

    what = "a score"
    fix = "score the answers again: mcit eval RUN --rescore"
    task: str
    n: Annotated[int, Field(ge=1)]
    strict: ModeScore
    fixed: ModeScore
    format_validity: Percent
    format_validity_interval: Interval
    lenient: Percent
    lenient_minus_strict: Percent
    truncation_rate: Percent | None
    mean_length: float | None
    scorer: ScorerName
    style: str
    rows_sha256: Sha256


class NearTies(Record):
    """Answers that other batches, or another machine, may give otherwise: two tokens were equally good to 1e-4."""

    what = "a count of near ties"
    known: Count
    """Answers whose scores were seen."""
    count: Count
    ids: list[str]


class Answered(Record):
    """How the answers of a task came about, with ``eval.options: forward``."""

    what = "a count of chosen and written answers"
    chosen: Count
    """Among the options of their rows."""
    written: Count
    refused: Count = 0
    """Of those written, how many because an option cannot be an answer of the model."""


class Score(AnyScore):
    """``score.json`` of answers that the run made."""

    near_ties: NearTies | None = None
    answered: Answered | None = None
    filters: list[str]
    lineage: str
    settings: str
    backend: Backend | None = None


class CombinationRecord(Record):
    """``combination.json`` beside the scores of combined adapters."""

    what = "the record of a combination"
    fix = "remove its folder and score the combination again"
    how: str
    stages: Annotated[list[int], Field(min_length=2)]
    weights: list[float]
    density: float
    rank: int | None
    seed: int


class SweepEntry(Record):
    """A run of a sweep: names of its stages in order, seed, and name of its folder beside the sweep's."""

    what = "a run of a sweep"
    order: list[str]
    seed: int
    run: Folder


class SweepRecord(Record):
    """``sweep.json``: runs of one config in several orders and with several seeds."""

    what = "the record of a sweep"
    fix = "run the same mcit sweep command again"
    name: str
    runs: Annotated[list[SweepEntry], Field(min_length=1)]


class AnswerFile(Record):
    """A file of answers made elsewhere."""

    what = "a file of answers"
    file: str
    sha256: Sha256


class ScoreElsewhere(AnyScore):
    """``score.json`` of answers made elsewhere, to the first `rows` test rows."""

    fix = "score the file of answers again"
    elsewhere: AnswerFile
    rows: int | None


class Rows(Record):
    """``rows.json``: results per question as parallel lists."""

    what = "a list of results per question"
    fix = Score.fix
    id: list[str]
    strict: list[Share]
    fixed: list[Share]
    valid: list[Share]

    @model_validator(mode="after")
    def _are_parallel(self) -> Self:
        if not len(self.id) == len(self.strict) == len(self.fixed) == len(self.valid):
            raise ValueError("the lists differ in length")
        return self
