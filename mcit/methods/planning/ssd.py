"""Choices of alpha, and what a plan must meet for SSD: whole weights where it dampens, importances that can be compared."""

from __future__ import annotations

from typing import Annotated, Any

from mcit.core.config import Config, Field
from mcit.core.errors import Problem
from mcit.core.types import Plan, Stage


class Percentile(Config):
    """Alpha as a percentile of I_f / I_D over the chosen matrices."""

    percentile: float = Field(gt=0, lt=100)
    """Percent of the weights that stay untouched."""


class Search(Config):
    """Alpha by trying."""

    search: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Alphas."""
    rise: float = Field(0.2, gt=0)
    """Share by which the retained loss may rise."""
    rows: int = Field(64, ge=1)
    """Retained rows it is measured on."""


def ssd_problems(config: Any, stage: Stage, plan: Plan, *, name: str) -> list[Problem]:
    """Whole weights where it dampens, merged adapters where it keeps what they add, the same squares throughout.

    What is to be dampened alone must have been kept by the stages that learned it.
    """
    where, out = f"stage {stage.name}, method {name}", []
    if stage.forget and stage.adapter.kind != "none":
        fix = "set adapter: {kind: none} and epochs: 0 in this stage"
        out.append(Problem(where, "single weights are dampened, and an adapter of low rank cannot hold that", fix))
    if config.dampen == "effect" and not stage.forget and stage.adapter.carry != "merge":
        what = f"dampen: effect adds up what adapters bring, but adapter.carry is {stage.adapter.carry}"
        out.append(Problem(where, what, "set adapter.carry: merge, or dampen: weights"))
    if config.dampen == "effect" and stage.forget:
        learned = [s for s in plan.stages[: stage.index - 1] if not s.forget and name in (m.name for m in s.methods)]
        kept = [spec.config.dampen for s in learned for spec in s.methods if spec.name == name]
        if set(kept) != {"effect"}:
            which = "not every earlier stage with it keeps" if "effect" in kept else "no earlier stage keeps"
            what = f"dampens what learned stages added, which {which}"
            out.append(Problem(where, what, f"list {name} with dampen: effect in the stages that learn"))
    trained = sum(task.rows.get("train", 0) for task in stage.forget) if stage.forget else stage.rows
    if config.squares == "batches" and 0 < min(config.rows, trained) < config.batch:
        what = f"batch is {config.batch}, and importances are estimated on {min(config.rows, trained)} rows here: "
        what += "a smaller batch has other squares, which cannot be compared"
        out.append(Problem(where, what, "use a smaller batch in every stage, or squares: rows"))
    for other in plan.stages[: stage.index - 1]:
        for spec in (s for s in other.methods if s.name == name):
            if any(getattr(spec.config, k) != getattr(config, k) for k in ("squares", "batch")):
                what = f"squares and batch differ from stage {other.name}, whose importances it is compared with"
                out.append(Problem(where, what, "set the same in every stage"))
    return out
