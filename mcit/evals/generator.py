"""Greedy decoding with a model, with filters.

Greedy means greedy: what a model's own generation config says about sampling, beams, penalties or lengths is put aside
while answers are made; only its end tokens count, together with the tokenizer's.
Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mcit.core.errors import ConfigError
from mcit.core.schema import EvalConfig
from mcit.core.types import Batch, JsonDict, Row, Sample
from mcit.data.collate import collate
from mcit.engine.forward import run_model
from mcit.engine.gated import gated
from mcit.engine.linears import quick
from mcit.engine.pack import Pack, pack_rows
from mcit.evals.decode import Edit, best, decode, why_not
from mcit.evals.filters.base import Filter, FilterContext, Preparation, edits_scores, picks_rows, prepares


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


class Sharing(TypedDict):
    """How rows of a batch go through the model together; arguments of `greedy` and `mcit.evals.generate.predict`."""

    tokens: int | None
    """A batch with more is divided."""
    share: bool
    """In one sequence, each picture once, where the model takes that."""


def sharing(config: EvalConfig) -> Sharing:
    """As ``eval.tokens`` and ``eval.share_prefix`` say."""
    return {"tokens": config.tokens, "share": config.share_prefix == "auto"}


class Generator:
    """Greedy decoding with a model that has been made ready; see `greedy`."""

    def __init__(
        self,
        model: Any,
        encoder: PromptEncoder,
        *,
        config: GenerationConfig,
        state: Mapping[str, Path] | None = None,
        tokens: int | None = None,
        share: bool = True,
        told: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._model, self._encoder, self._config, self._state = model, encoder, config, state or {}
        self._tokens, self._told = tokens, told
        self._share = share and not config.min_new_tokens
        self._ends = set(config.eos_token_id)

    def answer(
        self, rows: Sequence[Row], *, filters: Sequence[Filter] = (), device: torch.device | str
    ) -> list[JsonDict]:
        """Per row ``text``, ``tokens`` (without the end token) and ``truncated`` (no end token within the limit).

        ``near_tie`` is the number of the first token whose two best scores lie within `decode.NEAR`, None if there is none;
        it is left out where beams are searched.
        """
        samples = [self._encoder.prompt(row) for row in rows]
        out: list[JsonDict] = []
        for part in self.parts(samples, limit=self._config.max_new_tokens):
            out += self._answers(part, filters, torch.device(device))
        return out

    def parts(self, samples: Sequence[Sample], *, limit: int) -> Iterator[Sequence[Sample]]:
        """Rows that go through the model together, each with up to `limit` tokens behind its own."""
        for first, last in _parts(samples, limit=limit, tokens=self._tokens):
            yield samples[first:last]

    def _answers(self, samples: Sequence[Sample], filters: Sequence[Filter], device: torch.device) -> list[JsonDict]:
        rows = [sample.row for sample in samples]
        self._prepare(samples, filters, device)
        choosy = {id(one): one.acts_on(rows) for one in filters if picks_rows(one)}
        answers = self._written(samples, [one for one in filters if id(one) not in choosy], device)
        groups: dict[tuple[bool, ...], list[int]] = {}
        for k in range(len(rows)):
            groups.setdefault(tuple(acts[k] for acts in choosy.values()), []).append(k)
        for acting, places in groups.items():
            if any(acting):
                left_out = {key for key, acts in zip(choosy, acting, strict=True) if not acts}
                chain, chosen = [one for one in filters if id(one) not in left_out], [samples[k] for k in places]
                for k, answer in zip(places, self._written(chosen, chain, device), strict=True):
                    answers[k] = answer
        return answers

    def _written(self, samples: Sequence[Sample], filters: Sequence[Filter], device: torch.device) -> list[JsonDict]:
        """Answers with the filters; by packs where the model takes them."""
        beams = max((f.beams for f in filters), default=1)
        if beams > 1 and beams > (size := len(self._model.get_input_embeddings().weight)):  # sharded, it shows 0 rows
            what = f"asks for {beams} beams, the model has {size} tokens to begin them with"
            raise ConfigError(what, where="eval.filters", fix=f"use at most {size} beams")
        pack = self.pack(samples, device) if beams == 1 else None
        if pack is None:
            made, near = self._padded(samples, filters, beams, device)
        else:
            limit, edit = self._config.max_new_tokens, self._edit(samples, filters, device)
            made, near = decode(self._model, pack, ends=self._ends, limit=limit, device=device, edit=edit)
        ends, tokenizer = torch.tensor(sorted(self._ends)), self._encoder.processor.tokenizer
        out = []
        for sample, ids, tied in zip(samples, made, near, strict=True):
            answer = read_answer(torch.tensor(ids), sample.row, ends=ends, tokenizer=tokenizer, filters=filters)
            out.append(answer if beams > 1 else {**answer, "near_tie": tied})
        return out

    def pack(self, samples: Sequence[Sample], device: torch.device) -> Pack | None:
        """Prompts in one sequence; None where that is switched off or the model does not take it, which is told once."""
        if not self._share:
            return None
        reason, new = why_not(self._model, samples, pad_id=self._encoder.pad_id, device=device)
        if reason:
            if new:
                self._told(f"note: answers are made in padded batches, each picture once per row: {reason}")
            return None
        return pack_rows(collate(samples, stream="eval", pad_id=self._encoder.pad_id), always=True)

    def _edit(self, samples: Sequence[Sample], filters: Sequence[Filter], device: torch.device) -> Edit | None:
        editing = [one for one in filters if edits_scores(one)]
        if not editing:
            return None
        rows, prompts_BT = [sample.row for sample in samples], self._left(samples).input_ids_BT.to(device)

        def edit(number: int, scores_BV: Tensor, so_far_BN: Tensor) -> Tensor:
            ids_BT = torch.cat([prompts_BT, so_far_BN], 1)
            ctx = FilterContext(rows, ids_BT, prompts_BT.shape[1], self._encoder.processor.tokenizer)
            for one in editing:
                scores_BV = one.logits(number, scores_BV, ctx)
            return scores_BV

        return edit

    def _left(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, stream="eval", pad_id=self._encoder.pad_id, side="left")

    def _padded(
        self, samples: Sequence[Sample], filters: Sequence[Filter], beams: int, device: torch.device
    ) -> tuple[list[list[int]], list[int | None]]:
        """Ids and near ties by the model's own ``generate``."""
        batch, rows, tokenizer = self._left(samples), [s.row for s in samples], self._encoder.processor.tokenizer
        length = batch.input_ids_BT.shape[1]
        ties = _Ties()
        hooks = [_Hook(f, rows, length, tokenizer) for f in filters if edits_scores(f)]
        config = self._config
        if beams > 1:
            config = copy.deepcopy(config)
            config.num_beams = beams
        made = self._model.generate(
            input_ids=batch.input_ids_BT.to(device),
            attention_mask=batch.attention_BT.to(device),
            **{key: value.to(device) for key, value in batch.pixels.items()},
            generation_config=config,
            logits_processor=LogitsProcessorList([*hooks, *([ties] if beams == 1 else [])]),
        )
        ids = made[:, length:].tolist()
        return ids, [ties.first(b, own, self._ends) for b, own in enumerate(ids)]

    def _prepare(self, samples: Sequence[Sample], filters: Sequence[Filter], device: torch.device) -> None:
        wanting = [one for one in filters if prepares(one)]
        if not wanting:
            return
        rows, batch = [sample.row for sample in samples], self._left(samples)

        @functools.cache
        def hidden(layer: str, mean: bool) -> Tensor:
            out = run_model(self._model, batch, device=device, layers={layer})
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


class _Ties(LogitsProcessor):
    """Sees where two best scores are almost equal, and changes nothing."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._seen.append(best(scores)[1])
        return scores

    def first(self, row: int, ids: Sequence[int], ends: Collection[int]) -> int | None:
        """Number of the first such token of a row up to its end token."""
        for number, (token, near_B) in enumerate(zip(ids, self._seen, strict=False)):
            if bool(near_B[row]):
                return number
            if token in ends:
                break
        return None


def _parts(samples: Sequence[Sample], *, limit: int, tokens: int | None) -> Iterator[tuple[int, int]]:
    """Where parts of at most `tokens` tokens begin and end, of one row at least; a picture of several rows counts once."""
    first = held = 0
    for k, sample in enumerate(samples):
        whole = len(sample.input_ids_T) + limit
        again = k > first and _like(sample.row, samples[k - 1].row)
        own = whole - _pictures(sample) if again else whole
        if tokens is not None and k > first and held + own > tokens:
            yield first, k
            first, held, own = k, 0, whole
        held += own
    if first < len(samples):
        yield first, len(samples)


def _pictures(sample: Sample) -> int:
    """Tokens that stand for pictures."""
    return 0 if sample.image_T is None else int(sample.image_T.sum())


def _like(one: Row, other: Row) -> bool:
    return (one.root, one.images, one.encoding) == (other.root, other.images, other.encoding)


@contextlib.contextmanager
def greedy(
    model: Any,
    encoder: PromptEncoder,
    *,
    max_new_tokens: int,
    min_new_tokens: int | None = None,
    state: Mapping[str, Path] | None = None,
    tokens: int | None = None,
    share: bool = True,
    told: Callable[[str], None] = lambda line: None,
) -> Iterator[Generator]:
    """A generator in eval mode with nothing but greedy decoding set; the model's own settings come back afterwards.

    `told` gets a line when a model turns out to take no packs.
    """
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
        with torch.no_grad(), quick(model), gated(model):
            yield Generator(model, encoder, config=plain, state=state, tokens=tokens, share=share, told=told)
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
