"""What a plan may not ask of a quantised base or of bitsandbytes' optimisers; needs no weights."""

from __future__ import annotations

from mcit.core.errors import McitError, Problem
from mcit.core.optional import missing
from mcit.core.types import Plan, Stage
from mcit.engine.optim import EIGHT_BIT, NEEDS_CUDA, PAGED, SMALLEST
from mcit.models.load import refuse_quantised, skeleton
from mcit.models.quant import QUANTISED, language_linears


def precision_problems(plan: Plan) -> list[Problem]:
    """Problems and notes about base.dtype and optim.kind of every stage."""
    base = plan.config.base
    try:
        refuse_quantised(plan.model_path)
    except McitError as error:
        return list(error.problems)
    problems: list[Problem] = []
    if base.dtype in QUANTISED:
        problems += _base_problems(plan)
    if base.dtype in QUANTISED:
        for stage in plan.stages:
            problems += _adapter_problems(stage, base.dtype)
    for stage in plan.stages:
        problems += _optimizer_problems(stage, plan)
    return problems


def _base_problems(plan: Plan) -> list[Problem]:
    base, kind = plan.config.base, plan.config.engine.kind
    problems = missing("bitsandbytes", where="base.dtype")
    try:
        if not language_linears(skeleton(plan.model_path, trust_remote_code=base.trust_remote_code)):
            what = f"{base.dtype} quantises linears below the language decoder, and this model has none"
            problems.append(Problem("base.dtype", what, "set base.dtype: bf16"))
    except McitError as error:
        problems += [Problem("base.dtype", f"{base.dtype}: {p.what}", "set base.dtype: bf16") for p in error.problems]
    if kind == "zero3":
        what = f"zero3 shares out parameters as one flat array of a single type, and {base.dtype} codes and scales are not that"
        problems.append(Problem("engine.kind", what, "use plain, zero1 or zero2, or base.dtype: bf16"))
    return problems


def _adapter_problems(stage: Stage, dtype: str) -> list[Problem]:
    where = f"stages[{stage.index - 1}].adapter"
    if stage.adapter.kind == "none":
        what = f"is none (full fine-tuning), but base.dtype is {dtype}: quantised weights take no gradient"
        return [Problem(f"{where}.kind", what, "set adapter.kind: lora, or base.dtype: bf16")]
    if stage.adapter.carry == "merge":
        bits = "4" if dtype == "nf4" else "8"
        what = f"is merge, but base.dtype is {dtype}: merging an adapter into {bits}-bit weights loses the update in rounding"
        fix = "set adapter.carry: keep (go on training it) or stack (freeze it, add another), or base.dtype: bf16"
        return [Problem(f"{where}.carry", what, fix)]
    return []


def _optimizer_problems(stage: Stage, plan: Plan) -> list[Problem]:
    kind, engine = stage.optim.kind, plan.config.engine
    where = f"stages[{stage.index - 1}].optim.kind"
    if kind == "adamw":
        return []
    problems = missing("bitsandbytes", where=where)
    if engine.kind != "plain":
        what = (
            f"{kind} cannot run on {engine.kind}: DeepSpeed hands the optimiser one flat slice of all tensors per rank, so "
            "blocks of 8-bit moments would span tensors and could not be saved by their names"
        )
        problems.append(Problem(where, what, "use optim.kind: adamw on zero engines, or engine.kind: plain"))
    if kind in PAGED and not _on_cuda(engine.device):
        problems.append(Problem(where, f"{kind} {NEEDS_CUDA[0]}", NEEDS_CUDA[1]))
    if kind in EIGHT_BIT:
        what = f"{kind} keeps 32-bit moments for tensors below {SMALLEST:,} numbers"
        problems.append(Problem(where, what, "", "note"))
    return problems


def _on_cuda(device: str) -> bool:
    import torch

    return device == "cuda" or device == "auto" and torch.cuda.is_available()
