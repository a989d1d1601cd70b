"""Teacher-forced log-probabilities of any (prompt, answer) rows: batched, shared over ranks, kept as predictions are.

A row's last answer and its end token are scored given everything before them. A folder holds ``predictions.jsonl`` with one
line per row and ``generation.json`` with how it was made; a killed call is continued by the next, batch by batch, and ends in
the same bytes on any number of ranks. Shapes: N answer tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mcit.core.errors import Interrupted, StateError
from mcit.core.ranks import ONE, Ranks, agreed, on_first
from mcit.core.records import Likelihood
from mcit.core.stored import valid
from mcit.core.types import Batch, JsonDict, ModelOutput, Row, Sample
from mcit.data.collate import collate
from mcit.data.encode import IGNORE, Encoder
from mcit.engine.forward import run_model
from mcit.engine.lastblock import cut, uncut
from mcit.engine.pack import Pack, like_probe, pack_rows
from mcit.engine.packing import TROUBLE, difference, refusal, understood
from mcit.evals.predictions import PartFile, batches, identity_of, made_with, stored_lines, write_predictions

_KIND = "likelihood"
_REFUSED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_PIECE = 64
"""Positions whose whole distributions are held at a time."""


def likelihoods(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    out: Path,
    batch: int,
    device: torch.device | str,
    settings: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ONE,
    share: bool = True,
) -> list[JsonDict]:
    """Score the last answer of every row into the folder `out`, unless that is done; returns one mapping per row.

    ``id``, ``index``, ``logprobs`` (one per answer token, end token included, natural logarithm, fp32), ``tokens`` and
    ``sum``; per token ``hits`` (whether it is the likeliest one), ``mean`` and ``variance`` of log p under p itself; and
    ``body``, how many tokens come before the end token. `settings` say what the model is (``lineage`` and what else a caller
    knows); with the rows they are the identity of what is kept. With `share` a picture and a prefix that rows of a batch have
    in common are computed once, where the model allows it; values agree to rounding. Raises Interrupted after the batch in
    which `stop` says so, DataError for a row that cannot be encoded.
    """
    made = {**(settings or {}), "kind": _KIND, "batch": batch, "rows": identity_of({}, rows)}
    if on_first(ranks, lambda: made_with(out) != made):
        _measure(model, encoder, rows, made, out=out, batch=batch, device=device, stop=stop, ranks=ranks, share=share)
    return on_first(ranks, lambda: read_likelihoods(out))


def read_likelihoods(folder: Path) -> list[JsonDict]:
    """Finished log-probabilities in row order. Raises StateError when there are none, or they were changed."""
    return [_summed(valid(Likelihood, line, where=folder)) for line in stored_lines(folder, kind=_KIND)]


def choice(lines: Sequence[JsonDict], groups: Iterable[Sequence[int]], *, mean: bool = False) -> list[int]:
    """For each group of rows that differ in their answer alone the place of the likeliest one, by sum or per token.

    Of equals the first.
    """

    def value(place: int) -> float:
        return lines[place]["sum"] / (lines[place]["tokens"] if mean else 1)

    return [max(range(len(group)), key=lambda k: (value(group[k]), -k)) for group in groups]


def _summed(line: JsonDict) -> JsonDict:
    return {**line, "tokens": len(line["logprobs"]), "sum": sum(line["logprobs"])}


def _measure(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    made: JsonDict,
    *,
    out: Path,
    batch: int,
    device: torch.device | str,
    stop: Callable[[], bool],
    ranks: Ranks,
    share: bool,
) -> None:
    groups = batches(rows, batch)
    parts: list[PartFile] = []  # on rank 0 only

    def begin() -> list[int]:
        parts.append(PartFile(out, groups, identity=identity_of(made, rows)))
        return parts[0].missing

    missing = on_first(ranks, begin)
    for start in range(0, len(missing), ranks.size()):
        turn = missing[start : start + ranks.size()]
        mine: JsonDict = {}
        if ranks.rank() < len(turn):
            number = turn[ranks.rank()]
            scored = _batch(model, encoder, [rows[k] for k in groups[number]], torch.device(device), share)
            lines = [{"id": rows[k].id, "index": k, **line} for k, line in zip(groups[number], scored, strict=True)]
            mine |= {"batch": number, "rows": lines}
        found = ranks.gather_objects({**mine, "stop": bool(stop())})
        for entry in found if parts else []:
            if "batch" in entry:
                parts[0].add(entry["batch"], entry["rows"])
        if any(entry["stop"] for entry in found) and start + len(turn) < len(missing):
            fix = "run the same command again to continue"
            raise agreed(Interrupted("stopped between two batches; they are kept", where=str(out), fix=fix))

    def finish() -> None:
        write_predictions(out, list(parts[0].rows()), made)
        parts[0].remove()

    on_first(ranks, finish)


def _batch(model: Any, encoder: Encoder, rows: Sequence[Row], device: torch.device, share: bool) -> list[JsonDict]:
    """What a line holds of the answer tokens of each row."""
    samples = [last_answer(encoder.encode(row)) for row in rows]
    if not all(bool((sample.labels_T != IGNORE).any()) for sample in samples):
        raise StateError("a row has no answer to score", where=rows[0].where, fix="give each row an answer")
    batch = collate(samples, stream="likelihood", pad_id=encoder.pad_id)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            out = _outputs(model.eval(), batch, device, share)
    finally:
        for module, training in modes.items():
            module.training = training
    row_N, targets_N = out.row_N.cpu(), out.targets_N.cpu()
    mean_N, variance_N = moments(out.logits_NV)
    hits_N = out.logits_NV.argmax(-1).cpu() == targets_N
    lines = []
    for k in range(len(rows)):
        mine = row_N == k
        ends = (targets_N[mine] == encoder.end_token_id).nonzero().flatten().tolist()
        lines.append(
            {
                "logprobs": [-float(value) for value in out.nll_N.float().cpu()[mine]],
                "hits": hits_N[mine].tolist(),
                "mean": mean_N[mine].tolist(),
                "variance": variance_N[mine].tolist(),
                "body": ends[0] if ends else int(mine.sum()),
            }
        )
    return lines


def _outputs(model: Any, batch: Batch, device: torch.device, share: bool) -> ModelOutput:
    """Of the rows as a pack, where that pays and the model takes it, else padded."""
    pack = pack_rows(batch, whole=False) if share else None
    if pack is None or _why_not(model, batch, device):
        return run_model(model, batch, device=device)
    return _packed(model, batch, pack, device)


def _packed(model: Any, batch: Batch, pack: Pack, device: torch.device) -> ModelOutput:
    block = cut(model)
    try:
        with understood(model):
            return run_model(model, batch, device=device, pack=pack, ends=block is not None)
    finally:
        uncut(block)


def _why_not(model: Any, batch: Batch, device: torch.device) -> str:
    """Why a model's rows are not packed, empty if they are; the first rows that it is asked are compared with padded ones."""
    if model not in _REFUSED:
        reason = refusal(model) if hasattr(model, "get_decoder") else "its decoder is not known"
        probe = like_probe(batch)
        pack = None if reason else pack_rows(probe, whole=False, always=True)
        if pack is not None:
            try:
                reason = difference(run_model(model, probe, device=device), _packed(model, probe, pack, device))
            except TROUBLE as error:
                reason = str(error) or type(error).__name__
        _REFUSED[model] = reason
    return _REFUSED[model]


def moments(logits_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of log p under p, (N,) fp32 each, in pieces: a vocabulary is large."""
    means, variances = [], []
    for piece in logits_NV.split(_PIECE):
        logp = piece.float().log_softmax(-1)
        p = logp.exp()
        means.append((p * logp.clamp(min=-1e4)).sum(-1))
        variances.append((p * (logp.clamp(min=-1e4) - means[-1][:, None]).square()).sum(-1))
    if not means:
        return torch.zeros(0), torch.zeros(0)
    return torch.cat(means).cpu(), torch.cat(variances).cpu()


def last_answer(sample: Sample) -> Sample:
    """Only the last run of supervised tokens: earlier answers of a conversation are given."""
    labels = sample.labels_T.clone()
    places = (labels != IGNORE).nonzero().flatten().tolist()
    first = next((p for p, before in zip(places[::-1], [*places[-2::-1], -2], strict=True) if before != p - 1), 0)
    labels[:first] = IGNORE
    return replace(sample, labels_T=labels)
