"""Answers by vLLM instead of the run's own loop (``eval.backend: vllm``, extra ``vllm``; one process on a GPU).

vLLM gets the weights as a folder in HF layout, written for the evaluation and removed after it, and the prompt as the token
ids that this code made, each run of image tokens as one; it expands them again. What it expanded must be our own prompt,
token by token, or the evaluation stops. Greedy means greedy on both sides, but kernels and batches round differently, so an
answer may still differ: some rows are answered by both backends, and the differences are counted and named.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mcit.core.errors import ConfigError, StateError
from mcit.core.optional import needed
from mcit.core.schema import VllmConfig
from mcit.core.stored import write_sealed
from mcit.core.types import JsonDict, Row, Sample
from mcit.data.images import load_images
from mcit.evals.filters.base import Filter, edits_scores
from mcit.evals.generator import PromptEncoder, Sharing, end_tokens, greedy, read_answer
from mcit.evals.predictions import BACKEND
from mcit.models.adapters import lora_layers

_WHERE = "eval.backend: vllm"


class Served:
    """A vLLM engine with the weights of a model."""

    def __init__(self, engine: Any, library: Any, encoder: PromptEncoder, *, ends: Sequence[int]) -> None:
        self.encoder = encoder
        self._engine, self._library = engine, library
        self._ends = list(ends)
        self._pads = bool(getattr(encoder, "pad_images", False))

    @property
    def version(self) -> str:
        """vLLM's version."""
        return str(getattr(self._library, "__version__", "unknown"))

    def for_task(self, max_new_tokens: int) -> Limited:
        """The engine with an answer limit."""
        return Limited(self, max_new_tokens)

    def ids(self, rows: Sequence[Row], max_new_tokens: int) -> list[list[int]]:
        """Generated token ids per row, end token included. Raises StateError where vLLM saw another prompt."""
        samples = [self.encoder.prompt(row) for row in rows]
        params = self._library.SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=self._ends, detokenize=False
        )
        asked = [_asked(sample, pad=self._pads) for sample in samples]
        outputs = self._engine.generate(asked, params, use_tqdm=False)
        for sample, output in zip(samples, outputs, strict=True):
            if list(output.prompt_token_ids) != sample.input_ids_T.tolist():
                raise StateError(
                    f"vLLM expands the prompt to {len(output.prompt_token_ids)} tokens, ours has {len(sample.input_ids_T)}",
                    where=sample.row.where,
                    fix="set eval.backend: own; please report model and vLLM version",
                )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def read(self, ids: Sequence[int], row: Row, filters: Sequence[Filter]) -> JsonDict:
        """The answer that generated ids stand for."""
        ends, tokenizer = torch.tensor(self._ends), self.encoder.processor.tokenizer
        return read_answer(torch.tensor(ids), row, ends=ends, tokenizer=tokenizer, filters=filters)


class Limited:
    """`mcit.evals.generate.Answerer` by a served engine."""

    def __init__(self, served: Served, max_new_tokens: int) -> None:
        self._served, self._limit = served, max_new_tokens

    def answer(self, rows: Sequence[Row], *, filters: Sequence[Filter] = (), device: Any = None) -> list[JsonDict]:
        """``text``, ``tokens`` and ``truncated`` per row; the device is vLLM's own."""
        made = self._served.ids(rows, self._limit)
        return [self._served.read(ids, row, filters) for ids, row in zip(made, rows, strict=True)]


@contextlib.contextmanager
def serving(model: Any, encoder: PromptEncoder, *, config: VllmConfig, home: Path) -> Iterator[Served]:
    """A vLLM engine with the weights of `model`, written below `home` and removed afterwards.

    Raises ConfigError if vllm cannot be imported or does not take the model, or for adapters that are not merged.
    """
    library = needed("vllm", where=_WHERE)
    if lora_layers(model):
        what = "takes whole weights, and this model has adapters on it that are not merged"
        raise ConfigError(what, where=_WHERE, fix="set adapter.carry: merge in every stage, or eval.backend: own")
    folder = home / ".vllm.weights_.tmp"  # a name that the next start removes after a kill
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    engine = None
    try:
        model.save_pretrained(folder)
        encoder.processor.save_pretrained(folder)
        try:
            engine = library.LLM(
                model=str(folder),
                dtype=str(model.dtype).removeprefix("torch."),
                gpu_memory_utilization=config.memory_share,
                max_model_len=config.max_length,
                seed=0,
                generation_config="vllm",
                trust_remote_code=False,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            fix = "lower eval.vllm.memory_share, or set eval.backend: own"
            raise ConfigError(f"vLLM does not take the model: {error}", where=_WHERE, fix=fix) from error
        yield Served(engine, library, encoder, ends=end_tokens(model.generation_config, encoder))
    finally:
        del engine
        shutil.rmtree(folder, ignore_errors=True)


def compare(
    served: Served,
    model: Any,
    rows: Sequence[Row],
    *,
    count: int,
    max_new_tokens: int,
    device: torch.device | str,
    out: Path,
    sharing: Sharing | None = None,
) -> JsonDict:
    """Answer `count` rows, drawn at random, by both backends, and write ``backend.json`` below `out`.

    Content: ``backend``, ``version``, ``compared`` rows, ``different`` of them, their ``ids``.
    """
    drawn = random.Random(0).sample(list(rows), min(count, len(rows)))
    theirs = served.for_task(max_new_tokens).answer(drawn) if drawn else []
    ours: list[JsonDict] = []
    how = sharing or Sharing(tokens=None, share=True)
    with greedy(model, served.encoder, max_new_tokens=max_new_tokens, **how) as generator:
        for row in drawn:
            ours += generator.answer([row], device=device)
    pairs = zip(drawn, theirs, ours, strict=True)
    ids = [row.id for row, one, other in pairs if one["text"] != other["text"]]
    record = {"backend": "vllm", "version": served.version, "compared": len(drawn), "different": len(ids), "ids": ids}
    write_sealed(out / BACKEND, record)
    return record


def check_filters(filters: Sequence[Filter]) -> None:
    """Raises ConfigError for a filter that edits scores: vLLM hands none out."""
    for one in filters:
        if edits_scores(one):
            name = type(one).__module__.rpartition(".")[2]
            what = f"filter '{name}' edits the scores of tokens, which vLLM does not hand out"
            raise ConfigError(what, where="eval.filters", fix="set eval.backend: own")


def _asked(sample: Sample, *, pad: bool) -> JsonDict:
    """The prompt as vLLM takes it: ids with one token per picture, and the pictures."""
    row = sample.row
    if not row.images:
        return {"prompt_token_ids": sample.input_ids_T.tolist()}
    ids, runs = _folded(sample)
    if runs != len(row.images):
        raise ConfigError(
            f"a picture's tokens are not one run ({runs} runs for {len(row.images)} picture(s))",
            where=f"{_WHERE}: {row.where}",
            fix="set eval.backend: own for this model",
        )
    pictures = load_images(row, pad=pad or bool(row.meta.get("pad_image")))
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}


def _folded(sample: Sample) -> tuple[list[int], int]:
    """Token ids with every run of image positions as one token, and the number of runs."""
    image_T = sample.image_T
    if image_T is None:
        return sample.input_ids_T.tolist(), 0
    first_T = image_T.clone()
    first_T[1:] &= ~image_T[:-1]
    return sample.input_ids_T[~image_T | first_T].tolist(), int(first_T.sum())
