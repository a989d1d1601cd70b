"""Does the model's processor fit this trainer at all: asked once, on rows made here, before any row of the data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mcit.core.errors import McitError, Problem
from mcit.core.types import Row, Turn
from mcit.data.encode import Encoder

Kind = tuple[int, int, bool]
"""What matters about a row to a processor: pictures (at most 2), answers (at most 2), whether it has a system turn."""
_COLOURS = ((200, 40, 40), (40, 40, 200))


def kind_of(row: Row) -> Kind:
    """The kind of a row; plain texts have no answer."""
    answers = sum(turn.role == "assistant" for turn in row.turns)
    system = any(turn.role == "system" for turn in row.turns)
    return min(len(row.images), 2), 0 if row.encoding.raw else min(answers, 2), system


def kind_problem(encoder: Encoder, kind: Kind, *, where: str) -> Problem | None:
    """Why the model cannot be given this kind of row, said of the model; None when it can."""
    pictures, answers, system = kind
    if not answers:
        return None
    with _pictures(pictures) as folder:
        try:
            encoder.encode(_row(folder, pictures, answers, system))
        except McitError as error:
            return Problem(where, error.what if answers == 1 else f"{_said(kind)}: {error.what}", error.fix)
    return None


def processor_problem(encoder: Encoder, config: Any, *, where: str) -> Problem | None:
    """A processor that belongs to another model: its tokens have no embeddings, or its pictures another token."""
    fix = "put the files of this model's own processor and tokenizer into its folder"
    tokenizer = encoder.processor.tokenizer
    wanted = getattr(config, "image_token_id", None)
    if wanted is None:
        wanted = getattr(config, "image_token_index", None)
    if wanted is not None and encoder.image_token_id is not None and encoder.image_token_id != wanted:
        name = tokenizer.convert_ids_to_tokens(encoder.image_token_id)
        what = f"the processor's token for pictures is {name!r} with id {encoder.image_token_id}, the model's has id {wanted}"
        return Problem(where, what, fix)
    rows = max(int(config.get_text_config().vocab_size), -1 if wanted is None else int(wanted) + 1)
    if len(tokenizer) > rows:
        what = f"the tokenizer has {len(tokenizer)} tokens, the model knows {rows}"
        return Problem(where, what, fix)
    return None


def feature_problem(encoder: Encoder, model: Any, pictures: int, *, where: str) -> Problem | None:
    """A processor that writes another number of picture tokens than the model makes features of the pictures.

    `model` is a skeleton: its vision part runs on shapes. Families whose code asks for values there are not checked.
    """
    with _pictures(pictures) as folder:
        sample = encoder.encode(_row(folder, pictures, 1, False))
    if sample.image_T is None:
        return None
    images = {
        k: v.to("meta") if v.is_floating_point() else v for k, v in sample.pixels.items() if k not in sample.token_keys
    }
    owner = model if hasattr(model, "get_image_features") else model.base_model
    try:
        with torch.no_grad():
            out = owner.get_image_features(**images)
        made = getattr(out, "pooler_output", out)
        count = sum(part.shape[:-1].numel() for part in (made if isinstance(made, (list, tuple)) else [made]))
    except Exception:  # someone else's code, on shapes alone: what it cannot do says nothing about the model
        return None
    tokens = int(sample.image_T.sum())
    if count == tokens:
        return None
    fix = "patch size, select strategy and additional tokens in processor_config.json must be those of the model's config.json"
    what = f"the processor writes {tokens} tokens for {pictures} picture(s), the model makes {count} features of them"
    return Problem(where, what, fix)


@contextmanager
def _pictures(count: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for k in range(count):
            Image.new("RGB", (64, 48), _COLOURS[k]).save(Path(folder) / f"{k}.png")
        yield folder


def _said(kind: Kind) -> str:
    pictures = ("a text", "a picture", "several pictures")[kind[0]]
    return pictures + (" in a conversation of several turns" if kind[1] > 1 else "")


def _row(folder: str, pictures: int, answers: int, system: bool) -> Row:
    directions = (Turn("system", "Be brief."),) if system else ()
    first = Turn("user", "<image>\n" * pictures + "What is shown?")
    rest = [Turn("assistant", "yes"), Turn("user", "Is it red?")] * (answers - 1)
    names = tuple(f"{k}.png" for k in range(pictures))
    return Row("model", names, (*directions, first, *rest, Turn("assistant", "yes")), "model", "model", root=folder)
