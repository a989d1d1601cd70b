"""What a probe is handed: the model's outputs, answers and gradients on rows, and no weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from mcit.core.interfaces import Gradients
from mcit.core.types import Batch, Counts, JsonDict, LossSum, ModelOutput, Row, RowFit, Sample
from mcit.data.collate import collate
from mcit.data.encode import IGNORE
from mcit.engine import world
from mcit.evals.generator import Sharing, greedy
from mcit.evals.predictions import batches, gold_of
from mcit.evals.score import score_predictions
from mcit.methods.base import Method
from mcit.methods.compose import MethodSet
from mcit.probes.formulas.recollection import cue_length
from mcit.train.context import Context

_BATCH = 16
"""Rows of a pass without gradients."""


class Allowance(Protocol):
    """Whether a part of a measurement keeps to the probe's share of time."""

    def refused(self, part: str) -> str:
        """Why it does not, the same on every rank; empty if it does."""


class ProbeView:
    """A context without weights; see `mcit.core.interfaces.ProbeContext`."""

    def __init__(
        self,
        ctx: Context,
        methods: MethodSet,
        *,
        step: int,
        total: int,
        earlier: tuple[JsonDict, ...],
        mode: str,
        sharing: Sharing,
        allowance: Allowance,
    ) -> None:
        self.stage, self.seed, self.data = ctx.stage, ctx.seed, ctx.data
        self.step, self.total_steps, self.earlier = step, total, earlier
        self.forward_pass, self.gradient_pass, self.all_sum = ctx.forward_pass, ctx.gradient_pass, ctx.all_sum
        self.parts: dict[str, JsonDict] = {}
        """What each part of the measurement took, or why it was left out."""
        self._task = Counts({}, {})
        self._ctx, self._engine, self._streams, self._methods = ctx, ctx.engine, ctx.streams, methods
        self._mode, self._sharing, self._allowance = mode, sharing, allowance

    def within(self, part: str, work: Callable[[], JsonDict]) -> JsonDict | None:
        """`work`, if there is time for it."""
        why = self._allowance.refused(part)
        if why:
            self.parts[part] = {"left_out": why}
            return None
        started = time.monotonic()
        made = work()
        self.parts[part] = {"seconds": round(time.monotonic() - started, 4)}
        return made

    def fits(self, rows: Sequence[Row]) -> list[RowFit]:
        """Sums per row over the batches of this rank, put together."""
        sums = torch.zeros(len(rows), 3, dtype=torch.float64)
        rank, size = world.rank(), world.size()
        for number, (_, out) in enumerate(self.forward_pass(rows, rows=_BATCH, share=True)):
            places = out.row_N.cpu() + (rank + number * size) * _BATCH
            right_N = out.logits_NV.argmax(-1) == out.targets_N
            values_N3 = torch.stack([out.nll_N.double(), torch.ones_like(out.nll_N).double(), right_N.double()], 1)
            sums.index_add_(0, places, values_N3.cpu())
        return [RowFit(nll / max(1.0, n), int(n), int(right)) for nll, n, right in self.all_sum(sums).tolist()]

    def answers(self, rows: Sequence[Row], *, max_new_tokens: int) -> list[JsonDict]:
        """Batches of like length, each answered by one rank, or by all of them where weights are sharded."""
        encoder, out = self._streams.encoder, dict[int, JsonDict]()
        groups = batches(rows, _BATCH)
        with self._engine.answering() as (model, alike):
            size = 1 if alike else world.size()
            mine = groups if alike else groups[world.rank() :: size]
            device = next(model.parameters()).device
            with greedy(model, encoder, max_new_tokens=max_new_tokens, **self._sharing) as generator:
                for group in mine:
                    made = generator.answer([rows[k] for k in group], device=device)
                    out.update(zip(group, made, strict=True))
        if size > 1:
            found = world.gather_objects([[place, answer] for place, answer in out.items()])
            out = {place: answer for part in found for place, answer in part}
        return [out[k] for k in range(len(rows))]

    def continuations(self, rows: Sequence[Row]) -> list[JsonDict]:
        """Every rank goes over all rows."""
        encoder = self._streams.encoder
        tokenizer, out = encoder.processor.tokenizer, dict[int, JsonDict]()
        with self._engine.answering() as (model, _):
            device = next(model.parameters()).device
            for group in batches(rows, _BATCH):
                texts = [encoder.encode(rows[k]) for k in group]
                ids = [text.input_ids_T.tolist() for text in texts]
                cues = [_cut(text, cue_length(len(own))) for text, own in zip(texts, ids, strict=True)]
                batch = collate(cues, stream="recall", pad_id=encoder.pad_id, side="left")
                length = max(len(own) - cue_length(len(own)) for own in ids)
                with greedy(model, encoder, max_new_tokens=length, min_new_tokens=length):
                    made = model.generate(  # type: ignore[operator]
                        input_ids=batch.input_ids_BT.to(device), attention_mask=batch.attention_BT.to(device)
                    )[:, batch.input_ids_BT.shape[1] :].tolist()
                for k, own, new in zip(group, ids, made, strict=True):
                    half = cue_length(len(own))
                    parts = {"cue": own[:half], "rest": own[half:], "text": new[: len(own) - half]}
                    exact = parts["rest"] == parts["text"]
                    out[k] = {name: tokenizer.decode(part) for name, part in parts.items()} | {"exact": exact}
        return [out[k] for k in range(len(rows))]

    def score(self, task: str, rows: Sequence[Row]) -> JsonDict:
        """By the task's scorer, under the mode of the run."""
        spec = self.data.spec(task)
        made = self.answers(rows, max_new_tokens=spec.max_new_tokens)
        lines = [
            {"id": row.id, "index": k, "question": row.question, "gold": gold_of(row), **answer}
            for k, (row, answer) in enumerate(zip(rows, made, strict=True))
        ]
        found = score_predictions(lines, scorer=spec.scorer, style=spec.style).rows
        count = len(rows)
        return {
            "accuracy": sum(found[self._mode]) / count,
            "valid": sum(found["valid"]) / count,
            "truncated": sum(bool(answer["truncated"]) for answer in made) / count,
            "rows": count,
        }

    # ---- gradients --------------------------------------------------------------------------------------------------
    def gradient_norms(self, rows: Sequence[Row]) -> dict[str, float]:
        """One pass per loss; what methods log or count meanwhile is forgotten."""
        ctx, log, counts = self._ctx, self._ctx.take_log(), self._ctx.counts
        ctx.again = True
        try:
            found = {"plasticity": self._norm(rows, lambda out, batch: LossSum(out.nll_N.sum()), "task")}
            for method in self._methods.methods:
                squares = [value**2 for value in self._added_by(method, rows)]
                if squares:
                    found[method.name] = sum(squares) ** 0.5
        finally:
            ctx.again, ctx.counts = False, counts
            ctx.next_batch()
            ctx.take_log(log)
        return found

    def _added_by(self, method: Method, rows: Sequence[Row]) -> Iterator[float]:
        """Norms of the gradients of a method's loss term on each stream, and of its penalty."""
        if method.overrides("loss_term"):
            sources = {"task": rows}
            for name in sorted(method.claims.streams & set(self._streams.streams)):
                every = self._streams.streams[name].rows
                sources[name] = [every[k * len(every) // len(rows)] for k in range(min(len(rows), len(every)))]
            for name, some in sources.items():
                yield self._norm(some, lambda out, batch: self._methods.term_of(method, out, batch, self._ctx), name)
        if method.overrides("weight_penalty"):
            kinds = method.penalty_kinds
            for _, gradients in self.gradient_pass(rows[:1], loss=lambda out, batch: None):
                self._engine.add_penalties(
                    lambda unit, tensors: {
                        name: value
                        for name, value in self._methods.weight_penalty(unit, tensors, self._ctx).items()
                        if name == method.name
                    },
                    kinds,
                )
                yield _norm_of(gradients)

    def _norm(self, rows: Sequence[Row], loss: Callable[[ModelOutput, Batch], LossSum | None], stream: str) -> float:
        """Of the gradient of a loss on rows, seen as rows of a stream."""

        def of_stream(out: ModelOutput, batch: Batch) -> LossSum | None:
            batch = replace(batch, stream=stream)
            own, task = Counts.of_batch(batch), self._task  # a term may be counted in the task's tokens
            self._ctx.counts = Counts({**task.tokens, **own.tokens}, {**task.rows, **own.rows})
            if stream == "task":
                self._task = own
            return loss(out, batch)

        (found,) = [_norm_of(g) for _, g in self.gradient_pass(rows, rows=len(rows), loss=of_stream)]
        return found


def _cut(sample: Sample, length: int) -> Sample:
    """The first tokens of a plain text, nothing supervised."""
    ids_T = sample.input_ids_T[:length]
    return replace(sample, input_ids_T=ids_T, labels_T=torch.full_like(ids_T, IGNORE))


def _norm_of(gradients: Gradients) -> float:
    """Over all trained tensors, each counted once."""
    parts = [tensor for unit in gradients.units() for tensor in gradients.full(unit).values()]
    return float(sum(float(part.double().square().sum()) for part in parts) ** 0.5)
