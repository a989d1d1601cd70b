"""Which states of the base a run of GeRe keeps: what they are of, and how they are made (`general`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcit.core.errors import StateError
from mcit.core.interfaces import StepContext
from mcit.core.types import JsonDict, Row
from mcit.methods.formulas.general import Built, build_hidden, build_logits, build_states


def fingerprint(config: Any, ctx: StepContext) -> JsonDict:
    """Base, pool, text settings and what is kept: the name of the states."""
    kept: JsonDict = {"what": "hidden, bf16"}
    if config.variant == "tm":
        kept = {"what": "states", "multiplier": config.multiplier}
    if config.variant == "kl":
        kept = {"what": "logits", "temperature": config.temperature, "top_k": config.top_k}
    return {
        "base": ctx.base,
        "pool": {"recipe": config.recipe, "digest": ctx.data.pool_digest(config.recipe)},
        "text": {"max_length": config.max_length, "bos": config.bos},
        "layer": "last hidden state after the final norm, text positions",
        "kept": kept,
        "version": 1,
    }


def check_same(known: JsonDict | None, now: JsonDict, *, where: str) -> None:
    """Raise StateError if a run that has states would need others."""
    if known is None or known == now:
        return
    key = next(k for k in now if known.get(k) != now[k])
    raise StateError(
        f"the run's states of general samples are of {key} {known.get(key)}, now it is {now[key]}",
        where=where,
        fix="restore that, or start a new run: one run has one pool and one reference",
    )


def built(config: Any, ctx: StepContext, rows: Sequence[Row]) -> Built:
    """What the variant's loss compares with, by a pass through the base."""
    if config.variant == "tm":
        return build_states(ctx, rows, multiplier=config.multiplier)
    if config.variant == "kl":
        return build_logits(ctx, rows, count=config.top_k, temperature=config.temperature)
    return build_hidden(ctx, rows)
