"""Answers to all rows, batch by batch, kept as they come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from mcit.core.errors import Interrupted
from mcit.core.interfaces import Reporter, Silent
from mcit.core.ranks import ONE, Ranks, agreed, on_first
from mcit.core.types import JsonDict, Progress, Row
from mcit.evals.choosing import Choosing
from mcit.evals.filtering import Spec, identity, load_filters
from mcit.evals.filters.base import Filter
from mcit.evals.generator import PromptEncoder, greedy
from mcit.evals.options import Options
from mcit.evals.predictions import PartFile, batches, gold_of, identity_of, write_predictions


class Answerer(Protocol):
    """Makes answers to a batch of rows; see `mcit.evals.generator.Generator`."""

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
    tokens: int | None = None,
    share: bool = True,
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
    options: Options | None = None,
) -> None:
    """Answer every row and write ``predictions.jsonl`` into the folder `out`; a killed call is continued by the next.

    The model makes the answers itself, or `answerer` does; with a `pool` each row's own adapter acts. Rows for which `options`
    names some are answered by the likeliest of them (`mcit.evals.choosing`), the others as without it.

    A batch of more than `tokens` tokens is divided; `share` is `eval.share_prefix`.
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

    own: contextlib.AbstractContextManager[Any] = (
        contextlib.nullcontext(answerer)
        if answerer
        else greedy(
            model, encoder, max_new_tokens=max_new_tokens, state=state, tokens=tokens, share=share, told=reporter.line
        )
    )
    with own as plain:
        generator: Answerer = plain if options is None else Choosing(plain, model, encoder, options)
        if pool is not None:
            generator = PooledAnswerer(generator, pool)
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
