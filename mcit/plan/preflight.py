"""Checks of a plan that need the processor or the model's skeleton, but no weights."""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcit.core.errors import McitError, Problem
from mcit.core.records import AdapterNote
from mcit.core.stored import read_record
from mcit.core.types import JsonDict, Plan, Row, Stage, TaskSpec
from mcit.data.encode import Encoder
from mcit.data.folder import DataFolder
from mcit.data.memo import Memo
from mcit.data.recipe import SPLITS
from mcit.data.rowset import longest
from mcit.engine.layers import layer_of, layers_of
from mcit.methods.compose import make
from mcit.models import load
from mcit.models.adapterfile import OURS, read_adapter, without_routers
from mcit.models.adapters import candidates
from mcit.models.basefiles import base_digest, base_files
from mcit.models.units import decoder_prefix, lora_targets
from mcit.plan.datasets import readable
from mcit.plan.encoded import Encoded, SampleSize, Splits
from mcit.plan.modelcheck import Kind, feature_problem, kind_of, kind_problem, processor_problem

_SAMPLED, _LONGEST = 24, 8


def make_encoder(plan: Plan) -> Encoder:
    """The encoder of the plan's base, with the model's own context length as limit."""
    base = plan.config.base
    load.check_base(plan.model_path)
    files = base_files(plan.model_path)
    if base.chat_template:
        files["chat_template"] = Path(base.chat_template).expanduser()
    stamps = tuple((name, seen.st_size, seen.st_mtime_ns, seen.st_ino) for name, seen in _seen(files))
    return _encoder(plan.model_path, stamps, base.trust_remote_code, base.chat_template)


def _seen(files: Mapping[str, Path]) -> Iterator[tuple[str, os.stat_result]]:
    for name, file in files.items():
        with contextlib.suppress(OSError):
            yield name, file.stat()


@functools.lru_cache(maxsize=1)
def _encoder(path: Path, stamps: object, trust_remote_code: bool, chat_template: str | None) -> Encoder:
    """The encoder of a folder with files of these sizes and times: the run takes what its plan has loaded."""
    processor = load.load_processor(path, trust_remote_code=trust_remote_code, chat_template=chat_template)
    return Encoder(processor, max_length=_context_length(path, trust_remote_code), memo=Memo())


def context_length(plan: Plan) -> int | None:
    """Positions the language model can take, or None if its config does not say."""
    return _context_length(plan.model_path, plan.config.base.trust_remote_code)


def _context_length(path: Path, trust_remote_code: bool) -> int | None:
    config = load.model_config(path, trust_remote_code=trust_remote_code)
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def check_rows(plan: Plan) -> list[Problem]:
    """Encode sampled rows and the longest rows of every task and split, images included; not those of which an earlier plan
    has found that they encode.

    What the model cannot be given at all is said once, as a problem of the model, and not of each row.
    """
    encoded, todo = Encoded(plan), []
    for task in readable(plan):
        folder = DataFolder.open(task.folder)
        rows = {split: sampled(folder.rows(split)) for split in SPLITS}
        identity = encoded.identity(rows)
        sizes = encoded.get(identity)
        if sizes is None:
            todo.append((task, rows, identity))
        else:
            _SIZES[_key(plan, task)] = sizes
    return _row_problems(plan, todo, encoded) if todo else _count_problems(plan)


def _row_problems(
    plan: Plan, todo: Sequence[tuple[TaskSpec, Splits, JsonDict | None]], encoded: Encoded
) -> list[Problem]:
    """Encode rows of some tasks; where nothing is wrong with any, that is kept."""
    encoder = make_encoder(plan)
    where = "base.chat_template" if plan.config.base.chat_template else f"base.model: {plan.model_path}"
    config = load.model_config(plan.model_path, trust_remote_code=plan.config.base.trust_remote_code)
    other = processor_problem(encoder, config, where=f"base.model: {plan.model_path}")
    if other is not None:
        return [other]
    known: dict[Kind, Problem | None] = {}
    problems: list[Problem] = []
    for task, rows, _ in todo:
        for split in SPLITS:
            sizes = []
            for row in rows[split]:
                kind = kind_of(row)
                if kind not in known:
                    known[kind] = kind_problem(encoder, kind, where=where)
                if known[kind] is not None:
                    continue
                try:
                    sizes.append(SampleSize.of(encoder.encode(row)))
                except McitError as error:
                    problems += error.problems
            if split == "train":
                _SIZES[_key(plan, task)] = sizes
    said = {problem.what: problem for problem in known.values() if problem is not None}
    shown = max((pictures for (pictures, _, _), problem in known.items() if problem is None), default=0)
    if shown:
        found = feature_problem(encoder, shared_skeleton(plan), shown, where=f"base.model: {plan.model_path}")
        said |= {found.what: found} if found is not None else {}
    if not (said or problems or encoder.notes):
        for task, rows, identity in todo:
            encoded.put(identity, rows, _SIZES[_key(plan, task)])
    return [*said.values(), *problems, *_count_problems(plan)]


def _count_problems(plan: Plan) -> list[Problem]:
    """Rows with different numbers of pictures, in a family whose batches cannot hold them: then every row is counted."""
    base = plan.config.base
    check = load.family_part(plan.model_path, "counts_problem", trust_remote_code=base.trust_remote_code)
    if check is None:
        return []
    folders = [DataFolder.open(task.folder) for task in readable(plan)]
    counts = {len(row.images) for folder in folders for split in SPLITS for row in folder.rows(split)}
    what = check(counts)
    alone = plan.config.engine.micro_batch == 1 and plan.config.eval.batch == 1 and 0 not in counts
    if not what or alone:
        return []
    fix = "give all rows equally many pictures, or (if each has one) set engine.micro_batch: 1 and eval.batch: 1"
    return [Problem(f"base.model: {plan.model_path}", what, fix)]


_SIZES: dict[tuple[str, str], list[SampleSize]] = {}
"""By model and data folder, both named by their content; a plan encodes its rows once."""


def train_sizes(plan: Plan, task: TaskSpec) -> list[SampleSize]:
    """Sizes of the training rows that were sampled of a task: the longest ones first, then a random part."""
    if _key(plan, task) not in _SIZES:
        check_rows(plan)
    return _SIZES.get(_key(plan, task), [])


def _key(plan: Plan, task: TaskSpec) -> tuple[str, str]:
    return str(plan.model_path), str(task.folder)


def sampled(rows: Sequence[Row]) -> list[Row]:
    """A seeded sample and the rows with most text and images."""
    if len(rows) <= _SAMPLED + _LONGEST:
        return list(rows)
    return longest(rows, _LONGEST) + random.Random(0).sample(rows, _SAMPLED)


def skeleton(plan: Plan) -> Any:
    """The base model with shapes and no weights (meta device)."""
    return load.skeleton(plan.model_path, trust_remote_code=plan.config.base.trust_remote_code)


def shared_skeleton(plan: Plan) -> Any:
    """The same, made once for all that only read it."""
    stamps = tuple(
        (seen.st_size, seen.st_mtime_ns, seen.st_ino) for _, seen in _seen({"": plan.model_path / "config.json"})
    )
    return _skeleton(plan.model_path, stamps, plan.config.base.trust_remote_code)


@functools.lru_cache(maxsize=1)
def _skeleton(path: Path, stamps: object, trust_remote_code: bool) -> Any:
    return load.skeleton(path, trust_remote_code=trust_remote_code)


def check_adapter(plan: Plan, model: Any) -> list[Problem]:
    """The adapter that the run starts from must fit this base, and be of it where it says whose it is."""
    if not plan.config.base.adapter:
        return []
    where, folder = f"base.adapter: {plan.config.base.adapter}", Path(plan.config.base.adapter)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    try:
        file = without_routers(read_adapter(folder, known=frozenset(shapes)))  # it is merged
        said = read_record(folder / OURS, AdapterNote) if (folder / OURS).is_file() else {}
    except McitError as error:
        return list(error.problems)
    wanted: dict[str, tuple[int, ...]] = {
        f"{m}.weight": (pair.B_OR.shape[0], pair.A_RI.shape[1]) for m, pair in file.lora.items()
    }
    wanted.update({name: tuple(tensor.shape) for name, tensor in file.full.items()})
    wrong = [name for name, shape in sorted(wanted.items()) if shapes.get(name) != shape]
    if wrong:
        have = shapes.get(wrong[0], "no such tensor")
        what = (
            f"{len(wrong)} of {len(wanted)} tensors do not fit the base: {wrong[0]} {wanted[wrong[0]]}, it has {have}"
        )
        return [Problem(where, what, "give the base that the adapter was trained on")]
    own = said.get("base_sha256")
    if own is not None and own != base_digest(plan.model_path):
        what = f"was trained on another base (sha256 {own[:12]}…)"
        return [
            Problem(where, what, f"give that base, or remove {OURS} from the adapter's folder if this one is meant")
        ]
    return []


def check_shapes(plan: Plan) -> list[Problem]:
    """Targets, groups, layers and adapters that match nothing."""
    model = skeleton(plan)
    problems = check_adapter(plan, model)
    for stage in plan.stages:
        try:
            trained_parameters(model, stage)
        except McitError as error:
            where = f"stages[{stage.index - 1}]"
            problems += [Problem(f"{where}.{p.where}", p.what, p.fix) for p in error.problems]
        for i, spec in enumerate(stage.methods):
            for layer in sorted(layers_of(make(spec).claims.needs)):
                try:
                    layer_of(model, layer)
                except McitError as error:
                    place = f"stages[{stage.index - 1}].methods[{i}] ({spec.name})"
                    problems += [Problem(place, f"needs hidden:{layer}, but {error.what}", error.fix)]
    return problems


def trained_parameters(model: Any, stage: Stage) -> int:
    """Numbers in what the config of a stage names for training, counted on the skeleton, before methods narrow it.

    Raises PlanError for targets or groups that match nothing.
    """
    names = candidates(model, stage.adapter)
    shapes = dict(model.named_parameters())
    total = sum(shapes[n].numel() for n in names)
    if stage.adapter.kind != "none":
        if stage.adapter.targets == "language-linear":
            decoder_prefix(model)
        for module in lora_targets(model, stage.adapter.targets):
            weight = model.get_submodule(module).weight
            total += stage.adapter.rank * sum(weight.shape) + (stage.adapter.experts or 0) * weight.shape[1]
    return int(total)
