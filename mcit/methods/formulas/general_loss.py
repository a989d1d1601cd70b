"""What GeRe and its rivals add to the loss of a micro-batch of general rows, from what is kept of the base (`general`).

Shapes: P constrained positions of a batch, D features. ``l1`` and ``l2`` compare at the precision that features are kept in,
bf16: against a rounded reference the sign in l1's gradient would be that of the rounding wherever a feature has not moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mcit.core.errors import TrainingError
from mcit.core.interfaces import Blob
from mcit.core.types import Batch, Counts, ModelOutput
from mcit.methods.formulas.divergence import top_kl
from mcit.methods.formulas.general import constrained, places_of, real_rows, row_hidden
from mcit.methods.formulas.margin import at_precision, batch_margin, margin_losses, row_margins, row_means

Place = tuple[int, int, int]
"""Where a row's entries start and end, and its type's number."""


def added_sum(config: Any, out: ModelOutput, batch: Batch, counts: Counts, blob: Callable[[], Blob]) -> Tensor | None:
    """The added loss of a micro-batch as a sum over rows; None without one, or when no row counts.

    `config` is GeRe's, `counts` are the step's; `blob` gives what is kept of the base and is asked only if that is needed.
    """
    rows = real_rows(batch)
    if config.variant == "label" or not rows:
        return None
    count, tokens = (counts.of(batch.stream, per) for per in ("rows", "tokens"))
    if config.variant == "kl":
        return kl_sum(out, batch, blob(), rows, temperature=config.temperature) * (count / tokens)
    together = count if config.reduction == "authors" else 0
    return feature_sum(out, batch, blob(), rows, variant=config.variant, together=together)


def feature_sum(
    out: ModelOutput,
    batch: Batch,
    blob: Blob,
    rows: Sequence[int],
    *,
    variant: Literal["tm", "l1", "l2"],
    together: int = 0,
) -> Tensor:
    """Sum over `rows` of each row's own violation of the margin, or mean feature difference.

    `together` is for a margin over the whole micro-batch, which has to be all of the step's so many rows: TrainingError else.
    Raises StateError for a row without states.
    """
    mask_BT = constrained(batch)
    lengths = [int(mask_BT[k].sum()) for k in rows]
    hidden_PD = torch.cat([row_hidden(out, mask_BT, k) for k in rows])
    places = [places_of(blob.index, batch.rows[k], n) for k, n in zip(rows, lengths, strict=True)]
    if variant == "tm":
        return _margin(hidden_PD, lengths, places, blob, together)
    reference = torch.cat([blob.rows("hidden", start, end) for start, end, _ in places]).to(hidden_PD.device)
    difference = at_precision(hidden_PD, reference.dtype) - reference.float()
    return row_means(difference.abs() if variant == "l1" else difference.square(), lengths).sum()


def _margin(hidden_PD: Tensor, lengths: list[int], places: list[Place], blob: Blob, together: int) -> Tensor:
    device = hidden_PD.device
    codes = torch.cat([blob.rows("states", start, end) for start, end, _ in places]).to(device)
    high, low = blob.get("high").to(device), blob.get("low").to(device)
    kinds = [kind for _, _, kind in places]
    if len(set(kinds)) == 1:
        high, low = high[kinds[0]], low[kinds[0]]
    else:
        of_P = torch.tensor(kinds, device=device).repeat_interleave(torch.tensor(lengths, device=device))
        high, low = high[of_P], low[of_P]
    losses = margin_losses(hidden_PD, codes, high, low)
    if not together:
        return row_margins(losses, lengths).sum()
    if len(lengths) != together:
        raise TrainingError(
            f"reduction: authors is a mean over one micro-batch, but {together - len(lengths)} of the step's {together} "
            "general rows are in another one or on another rank",
            where="gere",
            fix="raise engine.micro_batch and use one process, or set reduction: rows",
        )
    return batch_margin(losses) * together


def kl_sum(out: ModelOutput, batch: Batch, blob: Blob, rows: Sequence[int], *, temperature: float) -> Tensor:
    """Sum over the supervised tokens of `rows` of the divergence from the base's likeliest tokens, fp32."""
    total = out.logits_NV.new_zeros((), dtype=torch.float32)
    for k in rows:
        logits = out.logits_NV[out.row_N == k]
        start, end, _ = places_of(blob.index, batch.rows[k], len(logits))
        ids, log_p = (blob.rows(name, start, end).to(logits.device) for name in ("ids", "log_p"))
        total = total + top_kl(logits, ids, log_p, temperature).sum()
    return total
