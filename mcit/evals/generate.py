"""Answers by greedy decoding, batch by batch, with filters.

Greedy means greedy: what a model's own generation config says about sampling, beams, penalties or lengths is put aside
while answers are made; only its end tokens count, together with the tokenizer's.
Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mcit.core.errors import ConfigError, Interrupted
from mcit.core.interfaces import Reporter, Silent
from mcit.core.ranks import ONE, Ranks, agreed, on_first
from mcit.core.types import Batch, JsonDict, Progress, Row, Sample
from mcit.data.collate import collate
from mcit.engine.forward import run_model
from mcit.evals.filtering import Spec, identity, load_filters
from mcit.evals.filters.base import Filter, FilterContext, Preparation, edits_scores, picks_rows, prepares
from mcit.evals.predictions import PartFile, batches, gold_of, identity_of, write_predictions


class PromptEncoder(Protocol):
    """What generation needs of `mcit.data.encode.Encoder`."""

    processor: Any

    @property
    def pad_id(self) -> int:
        """Id to pad with."""

    @property
    def end_token_id(self) -> int:
        """Id of the token that closes an answer."""

    def prompt(self, row: Row) -> Sample:
        """Everything before the row's last answer."""


class Answerer(Protocol):
    """Makes answers to a batch of rows; see `Generator`."""

    def answer(
        self, rows: Sequence[Row], *, filters: Sequence[Filter] = (), device: torch.device | str
    ) -> list[JsonDict]:
        """``text``, ``tokens`` and ``truncated`` per row."""


def predict(
    model: Any,
    encoder: PromptEncoder,
    rows: Sequence[Row],
    *,
    out: Path,
    batch: int,
    max_new_tokens: int,
    device: torch.device | str,
    filters: Sequence[Spec] = (),
    state: Mapping[str, Path] | None = None,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    label: str = "",
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ONE,
    answerer: Answerer | None = None,
    pool: Any = None,
) -> None:
    """Answer every row and write ``predictions.jsonl`` into the folder `out`; a killed call is continued by the next.

    The model makes the answers itself, or `answerer` does; with a `pool` each row's own adapter acts.

    `settings` goes into the record beside the predictions; batches made under other settings are not continued.
    `progress` is shown with counts filled in. With several ranks each takes every so many-th batch, in step with the
    others, and rank 0 writes them all in the order and bytes of one process. Raises Interrupted after the batch in which
    `stop` says so, DataError for a bad row or picture, ConfigError for an unknown filter.
    """
    reporter = reporter or Silent()
    chain = load_filters(filters)
    settings = {
        **(settings or {}),
        "batch": batch,
        "filters": identity(filters, chain, state or {}),
        "max_new_tokens": max_new_tokens,
    }
    groups = batches(rows, batch)
    parts: list[PartFile] = []  # on rank 0 only

    def begin() -> list[int]:
        parts.append(PartFile(out, groups, identity=identity_of(settings, rows)))
        return parts[0].missing

    missing = on_first(ranks, begin)
    kept = len(rows) - sum(len(groups[k]) for k in missing)
    shown = progress or Progress(0, 0, label, "eval", kept, len(rows))
    clock = _Clock(reporter, shown, done=kept, total=len(rows))
    from mcit.evals.pooled import PooledAnswerer

    own = (
        contextlib.nullcontext(answerer)
        if answerer
        else greedy(model, encoder, max_new_tokens=max_new_tokens, state=state)
    )
    with own as plain:
        generator = PooledAnswerer(plain, pool) if pool is not None else plain
        for start in range(0, len(missing), ranks.size()):
            turn = missing[start : start + ranks.size()]
            made: JsonDict = {}
            if ranks.rank() < len(turn):
                number = turn[ranks.rank()]
                asked = [rows[i] for i in groups[number]]
                answers = generator.answer(asked, filters=chain, device=device)
                lines = zip(groups[number], asked, answers, strict=True)
                made |= {"batch": number, "rows": [_line(i, row, answer) for i, row, answer in lines]}
            found = ranks.gather_objects({**made, "stop": bool(stop())})
            for entry in found if parts else []:
                if "batch" in entry:
                    parts[0].add(entry["batch"], entry["rows"])
            clock.tick(sum(len(groups[k]) for k in turn))
            if any(entry["stop"] for entry in found) and start + len(turn) < len(missing):
                raise agreed(
                    Interrupted(
                        f"stopped after {clock.done} of {len(rows)} answers; they are kept",
                        where=str(out),
                        fix="run the same command again to continue",
                    )
                )

    def finish() -> None:
        write_predictions(out, list(parts[0].rows()), settings)
        parts[0].remove()

    on_first(ranks, finish)


def _line(index: int, row: Row, answer: JsonDict) -> JsonDict:
    return {"id": row.id, "index": index, "question": row.question, "gold": gold_of(row), **answer}


class _Clock:
    """Reports how far an evaluation is and how long the rest will take."""

    def __init__(self, reporter: Reporter, shown: Progress, *, done: int, total: int) -> None:
        self._reporter, self._shown, self._kept, self._total = reporter, shown, done, total
        self._start = time.monotonic()
        self.done = done

    def tick(self, rows: int) -> None:
        self.done += rows
        left = (time.monotonic() - self._start) / (self.done - self._kept) * (self._total - self.done)
        self._reporter.progress(replace(self._shown, done=self.done, total=self._total, left_stage_s=left))


class Generator:
    """Greedy decoding with a model that has been made ready; see `greedy`."""

    def __init__(
        self, model: Any, encoder: PromptEncoder, *, config: GenerationConfig, state: Mapping[str, Path] | None = None
    ) -> None:
        self._model, self._encoder, self._config, self._state = model, encoder, config, state or {}
        self._ends = torch.tensor(config.eos_token_id)

    def answer(
        self, rows: Sequence[Row], *, filters: Sequence[Filter] = (), device: torch.device | str
    ) -> list[JsonDict]:
        """``text``, ``tokens`` (without the end token) and ``truncated`` (no end token within the limit) per row."""
        batch = self._batch(rows)
        self._prepare(rows, batch, filters, device)
        choosy = {id(one): one.acts_on(rows) for one in filters if picks_rows(one)}
        answers = self._written(rows, batch, [one for one in filters if id(one) not in choosy], device)
        groups: dict[tuple[bool, ...], list[int]] = {}
        for k in range(len(rows)):
            groups.setdefault(tuple(acts[k] for acts in choosy.values()), []).append(k)
        for acting, places in groups.items():
            if any(acting):
                left_out = {key for key, acts in zip(choosy, acting, strict=True) if not acts}
                chain, chosen = [one for one in filters if id(one) not in left_out], [rows[k] for k in places]
                for k, answer in zip(places, self._written(chosen, self._batch(chosen), chain, device), strict=True):
                    answers[k] = answer
        return answers

    def _batch(self, rows: Sequence[Row]) -> Batch:
        samples = [self._encoder.prompt(row) for row in rows]
        return collate(samples, stream="eval", pad_id=self._encoder.pad_id, side="left")

    def _written(
        self, rows: Sequence[Row], batch: Batch, filters: Sequence[Filter], device: torch.device | str
    ) -> list[JsonDict]:
        tokenizer, length = self._encoder.processor.tokenizer, batch.input_ids_BT.shape[1]
        hooks = LogitsProcessorList([_Hook(f, rows, length, tokenizer) for f in filters if edits_scores(f)])
        config, beams = self._config, max((f.beams for f in filters), default=1)
        if beams > (size := len(self._model.get_input_embeddings().weight)):
            what = f"asks for {beams} beams, the model has {size} tokens to begin them with"
            raise ConfigError(what, where="eval.filters", fix=f"use at most {size} beams")
        if beams > 1:
            config = copy.deepcopy(config)
            config.num_beams = beams
        made = self._model.generate(
            input_ids=batch.input_ids_BT.to(device),
            attention_mask=batch.attention_BT.to(device),
            **{key: value.to(device) for key, value in batch.pixels.items()},
            generation_config=config,
            logits_processor=hooks,
        )
        pairs = zip(rows, made[:, length:].cpu(), strict=True)
        return [read_answer(ids_T, row, ends=self._ends, tokenizer=tokenizer, filters=filters) for row, ids_T in pairs]

    def _prepare(
        self, rows: Sequence[Row], batch: Batch, filters: Sequence[Filter], device: torch.device | str
    ) -> None:
        wanting = [one for one in filters if prepares(one)]
        if not wanting:
            return

        @functools.cache
        def hidden(layer: str, mean: bool) -> Tensor:
            out = run_model(self._model, batch, device=torch.device(device), layers={layer})
            hidden_BTD = out.hidden[layer].float()
            if not mean:
                return hidden_BTD[:, -1].cpu()
            used_BT = batch.attention_BT.to(hidden_BTD.device).bool()
            return ((hidden_BTD * used_BT[..., None]).sum(1) / used_BT.sum(1, keepdim=True)).cpu()

        def embeddings() -> Tensor:
            table: Tensor = self._model.get_input_embeddings().weight.detach().cpu()
            return table

        given = (
            self._encoder.processor.tokenizer,
            self._state,
            functools.partial(hidden, "last", False),
            hidden,
            embeddings,
        )
        for one in wanting:
            one.prepare(Preparation(rows, *given))


def read_answer(ids_T: Tensor, row: Row, *, ends: Tensor, tokenizer: Any, filters: Sequence[Filter]) -> JsonDict:
    """``text``, ``tokens`` and ``truncated`` of generated ids, up to the first that is in `ends`."""
    found = torch.isin(ids_T, ends).nonzero()
    tokens = int(found[0]) if len(found) else len(ids_T)
    text = tokenizer.decode(ids_T[:tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    for one in filters:
        text = one.text(text, row)
    return {"text": text, "tokens": tokens, "truncated": not len(found)}


class _Hook(LogitsProcessor):
    """A filter as transformers wants it."""

    def __init__(self, one: Filter, rows: Sequence[Row], prompt_length: int, tokenizer: Any) -> None:
        self._filter, self._rows, self._length, self._tokenizer = one, rows, prompt_length, tokenizer

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        beams = len(input_ids) // len(self._rows)
        rows = [row for row in self._rows for _ in range(beams)] if beams > 1 else self._rows
        ctx = FilterContext(rows, input_ids, self._length, self._tokenizer)
        return self._filter.logits(input_ids.shape[1] - self._length, scores, ctx)


@contextlib.contextmanager
def greedy(
    model: Any,
    encoder: PromptEncoder,
    *,
    max_new_tokens: int,
    min_new_tokens: int | None = None,
    state: Mapping[str, Path] | None = None,
) -> Iterator[Generator]:
    """A generator in eval mode with nothing but greedy decoding set; the model's own settings come back afterwards."""
    own, modes = model.generation_config, {module: module.training for module in model.modules()}
    plain = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_token_id=end_tokens(own, encoder),
        pad_token_id=encoder.pad_id,
        use_cache=True,
    )
    # generate() fills what a passed config leaves open from the model's own, so the model's own must step aside.
    model.generation_config = plain
    model.eval()
    try:
        with torch.no_grad():
            yield Generator(model, encoder, config=plain, state=state)
    finally:
        model.generation_config = own
        for module, training in modes.items():  # one by one: frozen parts stay in eval mode inside a training model
            module.training = training


def end_tokens(own: GenerationConfig, encoder: PromptEncoder) -> list[int]:
    """Ids that end an answer: of the chat template, the tokenizer and the model's generation config, sorted."""
    given = own.eos_token_id
    ids = set(given) if isinstance(given, (list, tuple)) else {given}
    ids |= {encoder.processor.tokenizer.eos_token_id, encoder.end_token_id}
    return sorted(int(i) for i in ids if i is not None)
