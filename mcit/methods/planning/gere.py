"""Settings of GeRe and what they mean to a plan: rows of its pool, what must hold over stages, what a run keeps on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import Problem
from mcit.core.interfaces import DataContext
from mcit.core.types import Encoding, Plan, PoolSize, Row, Stage
from mcit.methods.compose import make

_SAME = ("recipe", "variant", "max_length", "bos", "multiplier", "temperature", "top_k")
"""Settings that the states depend on: one pool with one reference for a whole run."""


class GeReConfig(MethodConfig):
    """Settings of pool, mixing and loss."""

    weight: Annotated[float, Field(ge=0)] | Literal["dynamic"] = 100.0
    """Factor w of the added loss: a number (1 or 100 in the paper) or ``dynamic``; 0 switches the method off."""
    weight_limit: float = Field(1000.0, gt=0)
    """Largest dynamic weight; the authors set none, and it grows without bound as violations vanish."""
    recipe: str = "general/default"
    """Recipe of the pool: plain texts or conversations, with or without images."""
    variant: Literal["tm", "label", "kl", "l1", "l2"] = "tm"
    """Added loss: threshold margin; none (label fitting); KL of logits; mean absolute or squared feature difference."""
    mix: Literal["insert", "natural"] = "insert"
    """``insert``: `per_step` general rows on top of ``optim.batch`` task rows; ``natural``: shuffled among them."""
    per_step: int = Field(6, ge=1)
    """General rows per step under ``insert``; the paper's BI 6:60 is this with ``optim.batch: 60``."""
    combine: Literal["rows", "halves", "sum"] = "rows"
    """How task and general losses add up."""
    reduction: Literal["rows", "authors"] = "rows"
    """``authors`` averages violations over the whole micro-batch: one rank and one micro-batch of the stream per step."""
    multiplier: float = Field(1.0, ge=0)
    """Standard deviations from the mean to a threshold; 1 in the authors' code."""
    max_length: int = Field(563, ge=2)
    """Tokens after which a plain text is cut; 563 in the authors' code."""
    bos: bool = False
    """Put the tokenizer's start token before plain texts; the authors do not."""
    temperature: float = Field(2.0, gt=0)
    """Of both distributions in ``kl``."""
    top_k: int = Field(64, ge=1)
    """Tokens of the reference distribution kept for ``kl``; the rest of the vocabulary counts as one token."""


def pool_rows(config: GeReConfig, ctx: DataContext) -> list[Row]:
    """The pool, with what the encoder has to know about plain texts."""
    plain = Encoding(raw=True, bos=config.bos, max_tokens=config.max_length)
    return [replace(row, encoding=plain) if row.encoding.raw else row for row in ctx.pool(config.recipe)]


def gere_problems(config: GeReConfig, stage: Stage, plan: Plan, *, name: str) -> list[Problem]:
    """A pool that is also trained on or forgotten, settings that change between stages, an impossible reduction."""
    where = f"stages[{stage.index - 1}].methods ({name})"
    return [
        *_pool(config, stage, plan, where),
        *_settings(config, stage, plan, where, name),
        *_reduction(config, stage, plan, where),
        *_shares(config, stage, where, name),
    ]


def _pool(config: GeReConfig, stage: Stage, plan: Plan, where: str) -> list[Problem]:
    problems = []
    for pool in stage.pools:
        if pool.recipe != config.recipe:
            continue
        for used in (*plan.tasks, *plan.forget_tasks):
            if used.digest == pool.digest:
                what = f"the pool {pool.recipe} is also task '{used.name}' of this run"
                problems.append(Problem(where, what, "give a recipe of general rows that is in no stage"))
        if not pool.rows.get("train", 0):
            problems.append(Problem(where, f"the pool {pool.recipe} has no training rows", "add a train source"))
    return problems


def _settings(config: GeReConfig, stage: Stage, plan: Plan, where: str, name: str) -> list[Problem]:
    for other in plan.stages[: stage.index - 1]:
        for spec in other.methods:
            if spec.name != name or spec.config.weight == 0:
                continue
            for key in _SAME:
                mine, theirs = getattr(config, key), getattr(spec.config, key)
                if mine != theirs:
                    what = (
                        f"{key} is {mine}, in stage {other.name} it is {theirs}; a run has one pool and one reference"
                    )
                    return [Problem(where, what, f"set {key}: {theirs} in every stage")]
    return []


def _reduction(config: GeReConfig, stage: Stage, plan: Plan, where: str) -> list[Problem]:
    most = config.per_step if config.mix == "insert" else stage.optim.batch
    if config.reduction != "authors" or most <= plan.config.engine.micro_batch:
        return []
    what = f"reduction: authors needs all {most} general rows of a step in one micro-batch"
    return [Problem(where, what, f"set engine.micro_batch: {most} or more, or reduction: rows")]


def _shares(config: GeReConfig, stage: Stage, where: str, name: str) -> list[Problem]:
    others = [make(spec) for spec in stage.methods if spec.name != name]
    if config.combine == "sum" or not any("objective:task" in method.claims.slots for method in others):
        return []
    what = f"combine: {config.combine} takes a share of the task loss, which another method replaces"
    return [Problem(where, what, "set combine: sum")]


def kept_bytes(config: GeReConfig, pool: PoolSize, *, hidden: int) -> int:
    """Two bit planes per position, or bf16 features, or kept tokens with log-probabilities; image slots count too."""
    size = {"tm": 2 * -(-hidden // 8), "l1": 2 * hidden, "l2": 2 * hidden, "kl": 8 * config.top_k, "label": 0}
    logits = config.variant == "kl"
    return pool.positions(longest=config.max_length, supervised=logits) * size[config.variant]
