"""Whether the stages of a plan train on packs, as far as that is known before weights are loaded."""

from __future__ import annotations

from mcit.core.types import Plan
from mcit.engine.packing import refusal
from mcit.plan.preflight import shared_skeleton


def packs_refused(plan: Plan) -> str:
    """Why rows of every stage are padded; empty where they are packed, unless the trial before a first step says otherwise."""
    if not plan.config.engine.packs:
        return "engine.packs is false"
    return refusal(shared_skeleton(plan), attention=plan.config.base.attention)
