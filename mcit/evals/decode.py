"""Greedy decoding of a pack: each picture once, no padding, one token per row a step, finished rows leave.

Prompts go through the model as one sequence (`mcit.engine.pack`), which leaves keys and values behind; then the model sees
one new token of each row at a time. For models that take packs; the others decode padded batches with ``generate``.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from mcit.core.types import Batch, Sample
from mcit.data.collate import collate
from mcit.engine.kvcache import KeyCache, Prefill
from mcit.engine.lastblock import cut, uncut
from mcit.engine.pack import Pack, like_probe, pack_rows
from mcit.engine.packing import TROUBLE, close, refusal, understood

NEAR = 1e-4
"""Two best scores that lie within this may change places with the batch that a row is in."""
_LEAVE = 8
"""Finished rows are let go once they are one of so many."""

Edit = Callable[[int, Tensor, Tensor], Tensor]
"""Gets the number of the token, scores (B, V) in fp32 and what was written (B, number); gives scores."""
_REFUSED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def decode(
    model: Any, pack: Pack, *, ends: Collection[int], limit: int, device: torch.device, edit: Edit | None = None
) -> tuple[list[list[int]], list[int | None]]:
    """Up to `limit` tokens of every row of a pack, end token included, and the number of the first near tie of each.

    With `edit` rows stay until all have finished.
    """
    cache = KeyCache(pack, device)
    written: list[list[int]] = [[] for _ in pack.place_BT]
    near: list[int | None] = [None] * len(written)
    here, done = list(range(len(written))), set[int]()
    with prefilled(model, pack, cache, device) as scores_BV:
        for number in range(limit):
            scores_BV = scores_BV.float()
            if edit is not None:
                so_far_BN = torch.tensor(written, dtype=torch.int64, device=device).view(len(here), number)
                scores_BV = edit(number, scores_BV, so_far_BN)
            token_B, near_B = best(scores_BV)
            for b, token, tied in zip(here, token_B.tolist(), near_B.tolist(), strict=True):
                if tied and b not in done and near[b] is None:
                    near[b] = number
                written[b].append(token)
                if token in ends:
                    done.add(b)
            if len(done) == len(written) or number + 1 == limit:
                break
            gone = [k for k, b in enumerate(here) if b in done]
            if edit is None and len(gone) * _LEAVE >= len(here):
                staying = [k for k, b in enumerate(here) if b not in done]
                cache.keep(staying)
                here, token_B = [here[k] for k in staying], token_B[torch.tensor(staying, device=device)]
            scores_BV = next_scores(model, token_B, cache.positions(), {}, segments=cache, device=device)
            cache.step()
    return written, near


def best(scores_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The token with the best score of each row, and whether another lies within `NEAR` of it; (B,) both."""
    most_B, token_B = scores_BV.max(-1)
    return token_B, (scores_BV >= most_B[:, None] - NEAR).sum(-1) > 1


@contextlib.contextmanager
def prefilled(model: Any, pack: Pack, cache: KeyCache, device: torch.device) -> Iterator[Tensor]:
    """Scores of the first token, (B, V). While it lasts the model's attention understands packs."""
    block = cut(model)
    try:
        lasts_B = cache.lasts(pack)
        half = torch.is_autocast_enabled(device.type) or next(model.parameters()).dtype != torch.float32
        extra: dict[str, Any] = {"segments": Prefill(pack, cache, device, half=half)}
        if block is not None:
            ends, lasts_B = lasts_B.unique(return_inverse=True)
            extra["ends"] = ends.to(device)
        inputs = {**pack.pixels, "logits_to_keep": lasts_B}
        with understood(model):
            scores_BV = next_scores(model, pack.input_ids_P, pack.positions_P, inputs, device=device, **extra)
            uncut(block)
            block = None
            yield scores_BV
    finally:
        uncut(block)


def next_scores(
    model: Any, ids_P: Tensor, positions_P: Tensor, more: Mapping[str, Tensor], *, device: torch.device, **extra: Any
) -> Tensor:
    """Scores of one sequence, (P or kept, V); a mask of four dimensions keeps the model from making its own."""
    inputs = {
        "input_ids": ids_P[None],
        "position_ids": positions_P[None],
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        **more,
    }
    out = model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False, **extra)
    logits: Tensor = out.logits
    return logits[0]


# ---- which models ---------------------------------------------------------------------------------------------------
def why_not(model: Any, samples: Sequence[Sample], *, pad_id: int, device: torch.device) -> tuple[str, bool]:
    """Why a model's prompts are not packed, empty if they are; and whether that was found out just now.

    The first rows that a model is asked are compared with their padded batch, two tokens long.
    """
    known = _REFUSED.get(model)
    if known is not None:
        return known, False
    reason = refusal(model) if hasattr(model, "get_decoder") else "its decoder is not known"
    if not reason:
        reason = _tried(model, like_probe(collate(samples[:2], stream="eval", pad_id=pad_id)), device)
    _REFUSED[model] = reason
    return reason, True


def _tried(model: Any, probe: Batch, device: torch.device) -> str:
    pack = pack_rows(probe, always=True)
    if pack is None:
        return "which picture values belong to which row is not clear"
    seen: list[Tensor] = []
    end_B1 = probe.attention_BT.sum(1, keepdim=True)
    last_B1 = probe.input_ids_BT.gather(1, end_B1 - 1)

    def kept(number: int, scores_BV: Tensor, so_far_BN: Tensor) -> Tensor:
        """Text is written whatever the scores are: a whole pass would ask a picture of a picture's token."""
        seen.append(scores_BV.log_softmax(-1))
        return torch.zeros_like(scores_BV).scatter(1, last_B1.to(device), 1.0)

    try:
        written, _ = decode(model, pack, ends=(), limit=2, device=device, edit=kept)
    except TROUBLE as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    ids_BT, attention_BT = (pad(x, (0, 1)) for x in (probe.input_ids_BT, probe.attention_BT))
    inputs = {
        "input_ids": ids_BT.scatter(1, end_B1, torch.tensor(written)[:, :1]),
        "attention_mask": attention_BT.scatter(1, end_B1, 1),
        **probe.pixels,
    }
    logits = model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False).logits.cpu()
    at_B2V = torch.cat([end_B1 - 1, end_B1], 1)[..., None].expand(-1, -1, logits.shape[-1])
    seen_B2V = torch.stack(seen, 1).cpu()
    gap_B2V = logits.gather(1, at_B2V).float().log_softmax(-1) - seen_B2V
    gap = float(gap_B2V.gather(2, seen_B2V.argmax(-1, keepdim=True)).abs().max())
    return "" if gap <= close(logits.dtype) else f"scores of tokens would change by up to {gap:.2g}"
