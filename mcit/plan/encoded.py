"""Rows that encode without a problem, kept in the cache with their sizes: an equal plan need not encode them again.

An entry is named by everything that the outcome follows from: what the rows say, the bytes of their pictures, the files of the
processor, the chat template, the versions of the libraries that read them, and our own code. A plan with a problem keeps none.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcit.core.entries import Entries, code_digest, versions
from mcit.core.errors import McitError
from mcit.core.files import digest_of
from mcit.core.hashes import sha256_files
from mcit.core.types import JsonDict, Plan, Row, Sample
from mcit.data.encode import IGNORE
from mcit.data.images import resolve_below
from mcit.data.recipe import Split
from mcit.models.basefiles import base_files

Splits = Mapping[Split, Sequence[Row]]
"""Rows by their split."""
ENTRIES = Entries("encoded", most=1000)
"""One of a task takes about 10 KB."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "numpy", "pillow")


@dataclass(frozen=True)
class SampleSize:
    """How large an encoded row is."""

    positions: int
    supervised: int
    pixels: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    """Shape and dtype by the processor's names."""

    @classmethod
    def of(cls, sample: Sample) -> SampleSize:
        """Of one row."""
        images = {name: value for name, value in sample.pixels.items() if name not in sample.token_keys}
        pixels = {name: (tuple(value.shape), value.dtype) for name, value in images.items()}
        return cls(len(sample.input_ids_T), int((sample.labels_T != IGNORE).sum()), pixels)


class Encoded:
    """What is kept for the base of a plan; nothing where the base brings code of its own."""

    def __init__(self, plan: Plan) -> None:
        self._base = None if plan.config.base.trust_remote_code else _base(plan)

    def identity(self, rows: Splits) -> JsonDict | None:
        """Everything that sizes of these rows follow from; None where a file cannot be read: who opens it says so."""
        if self._base is None:
            return None
        said, pictures = hashlib.sha256(), []
        try:
            for split, each in rows.items():
                said.update(repr((split, len(each))).encode())
                for row in each:
                    said.update(repr((row.turns, row.encoding, len(row.images))).encode("utf-8", "surrogatepass"))
                    pictures += [resolve_below(row.root, name, where=row.where) for name in row.images]
        except McitError:
            return None
        digests = list(sha256_files(pictures))
        return None if None in digests else {**self._base, "rows": said.hexdigest(), "pictures": digest_of(digests)}

    def get(self, identity: JsonDict | None) -> list[SampleSize] | None:
        """Sizes of the training rows where all rows are known to encode, else None."""
        found = None if identity is None else ENTRIES.get(identity)
        if found is not None:
            with contextlib.suppress(AttributeError, TypeError, ValueError):
                return [_read(*size) for size in found]
        return None

    def put(self, identity: JsonDict | None, rows: Splits, sizes: Sequence[SampleSize]) -> None:
        """Keep that rows of this identity encode, unless a file was changed meanwhile."""
        if identity is not None and identity == self.identity(rows):
            ENTRIES.put(identity, [_written(size) for size in sizes])


def _base(plan: Plan) -> JsonDict | None:
    """Everything beside the rows."""
    files = {name: file for name, file in base_files(plan.model_path).items() if file.suffix != ".safetensors"}
    if plan.config.base.chat_template:
        files["chat_template"] = Path(plan.config.base.chat_template).expanduser()
    digests = dict(zip(files, sha256_files(files.values()), strict=True))
    if None in digests.values():
        return None
    return {"files": digests, "libraries": versions(_LIBRARIES), "code": code_digest("core", "data", "models", "plan")}


def _written(size: SampleSize) -> list[Any]:
    pixels = {name: [list(shape), str(dtype).removeprefix("torch.")] for name, (shape, dtype) in size.pixels.items()}
    return [size.positions, size.supervised, pixels]


def _read(positions: int, supervised: int, pixels: Mapping[str, tuple[list[int], str]]) -> SampleSize:
    named = {name: (tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in pixels.items()}
    return SampleSize(positions, supervised, named)
