"""Answers chosen among the options of a row, without writing one (``eval.options: forward``).

Rule. Tokens that all options of a row begin with (a blank, perhaps) tell nothing apart and count as part of the prompt. Where
one token is left of every option, the likeliest of these is the answer: one forward pass. Else an option counts with the sum of
the log-probabilities of its tokens and of the one that ends an answer, each behind the prompt and the tokens before it. Of
equal options the first as stated is taken. An option has the tokens that it has as an answer in training. A row with an option
that cannot be an answer there (a control token, say) is written like one without options, and its answer says so.

Prompts go through the model as a pack, as in greedy decoding; then longer options go on from the keys and values of their
prompt, one token of each at a time. A model that takes no packs sees every option behind a prompt of its own, padded. As in
greedy decoding it is prompts alone that the model's limit holds for.

Greedy decoding gives the same answer where it writes an option and one token tells them apart; where options are longer it
takes the best token each time and the rule here the likeliest whole, so that the two may differ.

Shapes: B rows, V vocabulary, K options of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor

from mcit.core.errors import DataError
from mcit.core.types import JsonDict, Row, Sample, Turn
from mcit.data.collate import collate
from mcit.data.encode import IGNORE
from mcit.engine.forward import run_model
from mcit.engine.kvcache import KeyCache
from mcit.engine.pack import Pack
from mcit.evals.decode import NEAR, next_scores, prefilled
from mcit.evals.filters.base import Filter
from mcit.evals.generator import Generator
from mcit.evals.options import Options

Tokens = tuple[int, ...]
Case = tuple[Tokens, list[Tokens]]
"""What the options of a row begin with, and what of each is compared; see `told_apart`."""


@dataclass(frozen=True)
class Answer:
    """An option as an answer: its tokens with the end, N, as training has them behind a prompt."""

    ids: Tokens
    values: Mapping[str, Tensor]
    """What the processor says of each token, (N, ...)."""

    def part(self, first: int, count: int) -> Answer:
        """`count` tokens from number `first` on."""
        here = slice(first, first + count)
        return Answer(self.ids[here], {name: value[here] for name, value in self.values.items()})


class Choosing:
    """Answers rows that have options by the likeliest, and lets the generator answer the others."""

    def __init__(self, generator: Generator, model: Any, encoder: Any, options: Options) -> None:
        self._generator, self._model, self._encoder, self._options = generator, model, encoder, options
        self._known: dict[str, Answer | DataError] = {}

    def answer(
        self, rows: Sequence[Row], *, filters: Sequence[Filter] = (), device: torch.device | str
    ) -> list[JsonDict]:
        """As `Generator.answer`. Of a chosen answer ``options`` is how many there were, ``tokens`` its own without the end, and
        ``near_tie`` 0 where the two likeliest options lie within `decode.NEAR`; of one that was written because an option
        cannot be an answer ``refused_option`` is that option.
        """
        stated = [list(self._options(row)) for row in rows]
        refused = [self._refused(row, options) for row, options in zip(rows, stated, strict=True)]
        choosing = [k for k, options in enumerate(stated) if options and refused[k] is None]
        written = [k for k in range(len(rows)) if k not in set(choosing)]
        out: dict[int, JsonDict] = {}
        if written:
            made = self._generator.answer([rows[k] for k in written], filters=filters, device=device)
            for k, answer in zip(written, made, strict=True):
                out[k] = answer if refused[k] is None else {**answer, "refused_option": refused[k]}
        if choosing:
            found = self._scores([rows[k] for k in choosing], [stated[k] for k in choosing], torch.device(device))
            out |= {k: self._chosen(rows[k], stated[k], own, filters) for k, own in zip(choosing, found, strict=True)}
        return [out[k] for k in range(len(rows))]

    def _refused(self, row: Row, options: Sequence[str]) -> str | None:
        """The first option that cannot be an answer."""
        for text in options:
            try:
                self._answer(text, row)
            except DataError:
                return text
        return None

    def _chosen(self, row: Row, options: Sequence[str], scores: Sequence[float], filters: Sequence[Filter]) -> JsonDict:
        best = max(scores)
        text = options[scores.index(best)]  # of equals the first
        tokens = len(self._answer(text, row).ids) - 1
        for one in filters:
            text = one.text(text, row)
        near = 0 if sum(score >= best - NEAR for score in scores) > 1 else None
        return {"text": text, "tokens": tokens, "truncated": False, "near_tie": near, "options": len(options)}

    def _scores(self, rows: Sequence[Row], options: Sequence[Sequence[str]], device: torch.device) -> list[list[float]]:
        """Of the options of each row, up to a number that all of a row have in common."""
        answers = [[self._answer(text, row) for text in own] for row, own in zip(rows, options, strict=True)]
        cases = [told_apart([answer.ids for answer in own]) for own in answers]
        samples = [
            _longer(self._encoder.prompt(row), own[0].part(0, len(begun)))
            for row, own, (begun, _) in zip(rows, answers, cases, strict=True)
        ]
        most = max(sum(len(ids) for ids in rest if len(ids) > 1) for _, rest in cases)
        out: list[list[float]] = []
        for part in self._generator.parts(samples, limit=most):
            here = slice(len(out), len(out) + len(part))
            pack = self._generator.pack(part, device)
            if pack is None:
                out += self._padded(part, answers[here], cases[here], device)
            else:
                out += packed_scores(self._model, pack, [rest for _, rest in cases[here]], device=device)
        return out

    def _answer(self, text: str, row: Row) -> Answer:
        """As `as_answer` of the row."""
        if text not in self._known:
            try:
                self._known[text] = as_answer(self._encoder, text, row)
            except DataError as error:
                self._known[text] = error
        known = self._known[text]
        if isinstance(known, DataError):
            raise known
        return known

    def _padded(
        self,
        prompts: Sequence[Sample],
        answers: Sequence[Sequence[Answer]],
        cases: Sequence[Case],
        device: torch.device,
    ) -> list[list[float]]:
        """The same by rows of their own: one for each option of which more than one token counts, at least one a row."""
        asked = [(b, k) for b, (_, rest) in enumerate(cases) for k in range(len(rest)) if k == 0 or len(rest[k]) > 1]
        samples = []
        for b, k in asked:
            begun, rest = cases[b]
            samples.append(_longer(prompts[b], answers[b][k].part(len(begun), len(rest[k])), supervised=True))
        out = [[0.0] * len(rest) for _, rest in cases]
        done = 0
        for part in self._generator.parts(samples, limit=0):
            made = run_model(self._model, collate(part, stream="eval", pad_id=self._encoder.pad_id), device=device)
            for n, (b, k) in enumerate(asked[done : done + len(part)]):
                rest = cases[b][1]
                places = (made.row_N == n).nonzero().flatten()
                logp_V = made.logits_NV[places[0]].float().log_softmax(-1)
                out[b] = [
                    float(logp_V[ids[0]]) if len(ids) == 1 else known for ids, known in zip(rest, out[b], strict=True)
                ]
                if len(rest[k]) > 1:
                    out[b][k] = -float(made.nll_N[places].double().sum())
            done += len(part)
        return out


def as_answer(encoder: Any, text: str, row: Row) -> Answer:
    """An option of a row as an answer; its tokens do not depend on what the prompt says.

    Raises DataError for a text that cannot be an answer in training.
    """
    asked = replace(row, images=(), turns=(Turn("user", "?"), Turn("assistant", text)))
    sample = encoder.without_limit().encode(asked)
    own_T = sample.labels_T != IGNORE
    values = {name: sample.pixels[name][own_T] for name in sample.token_keys & sample.pixels.keys()}
    return Answer(tuple(sample.labels_T[own_T].tolist()), values)


def told_apart(options: Sequence[Tokens]) -> Case:
    """Tokens that all options begin with, and what of each counts behind them: one alone where each has one and the end."""
    begun = tuple(commonprefix(options))[: min(map(len, options)) - 1]
    rest = [ids[len(begun) :] for ids in options]
    return begun, [ids[:1] for ids in rest] if all(len(ids) == 2 for ids in rest) else rest


def _longer(sample: Sample, more: Answer, *, supervised: bool = False) -> Sample:
    """The prompt with tokens of an answer behind it; what the processor does not say of these is as of the last one."""
    if not more.ids:
        return sample
    ids_T = torch.tensor(more.ids, dtype=torch.int64)
    image_T = sample.image_T if sample.image_T is None else torch.cat([sample.image_T, torch.zeros_like(ids_T).bool()])
    pixels = dict(sample.pixels)
    for name in sample.token_keys & pixels.keys():
        said = pixels[name]
        values = more.values.get(name, said[-1:].expand(len(ids_T), *said.shape[1:]))
        pixels[name] = torch.cat([said, values.to(said.dtype)])
    return replace(
        sample,
        input_ids_T=torch.cat([sample.input_ids_T, ids_T]),
        labels_T=torch.cat([sample.labels_T, ids_T if supervised else torch.full_like(ids_T, IGNORE)]),
        image_T=image_T,
        pixels=pixels,
    )


def packed_scores(
    model: Any, pack: Pack, tokens: Sequence[Sequence[Tokens]], *, device: torch.device
) -> list[list[float]]:
    """Sums of log-probabilities of the K token sequences of each row of a pack of prompts.

    The model is in eval mode, and gradients are off. Each prompt goes through once.
    """
    cache = KeyCache(pack, device)
    here = [(b, k) for b, own in enumerate(tokens) for k in range(len(own))]
    out = [[0.0] * len(own) for own in tokens]

    def add(scores_BV: torch.Tensor, places: Sequence[int], number: int) -> None:
        """Token `number` of each sequence; `places` are the rows of scores."""
        scores_BV = scores_BV.float()
        rows, ids = (torch.tensor(x, device=device) for x in (places, [tokens[b][k][number] for b, k in here]))
        logps = scores_BV[rows, ids] - scores_BV.logsumexp(-1)[rows]
        for (b, k), logp in zip(here, logps.tolist(), strict=True):
            out[b][k] += logp

    with prefilled(model, pack, cache, device) as scores_BV:
        number, places = 1, [b for b, _ in here]
        add(scores_BV, places, 0)
        while staying := [n for n, (b, k) in enumerate(here) if len(tokens[b][k]) > number]:
            if number == 1 or len(staying) < len(here):
                cache.keep([places[n] for n in staying])
                here = [here[n] for n in staying]
            written = torch.tensor([tokens[b][k][number - 1] for b, k in here], device=device)
            scores_BV = next_scores(model, written, cache.positions(), {}, segments=cache, device=device)
            cache.step()
            places = list(range(len(here)))
            add(scores_BV, places, number)
            number += 1
    return out
