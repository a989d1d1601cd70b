"""The self-test's run: one stage of the tiny model with the engine under test, exported and reloaded without mcit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcit.core.errors import PlanError
from mcit.core.interfaces import Silent
from mcit.core.ranks import on_all, on_first
from mcit.core.schema import RunConfig
from mcit.core.types import Batch, JsonDict, Plan
from mcit.engine import world
from mcit.plan import plan as planning
from mcit.plan import record
from mcit.runs.run import Run, open_run
from mcit.selftest.kit import Kit
from mcit.train.sequence import Session, train


def run_config(ranks: int, engine: JsonDict) -> RunConfig:
    """One stage of three steps on generated pictures. Raises PlanError if the package contradicts itself."""
    data = {
        "name": "selftest",
        "seed": 1,
        "base": {"family": "tiny", "dtype": "fp32"},
        "engine": {"micro_batch": 2, "workers": 0, **engine},
        "checkpoint": {"every": 0},
        "eval": {"tasks": "none"},
        "defaults": {
            "adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"]},
            "optim": {"batch": 2 * ranks, "lr": 1e-2, "lr_projector": 1e-3, "warmup": 0},
            "max_steps": 3,
        },
        "stages": [{"recipe": "tiny/letter"}],
    }
    config, problems = planning.parse_run(data)
    if config is None:
        raise PlanError.of(problems)
    return config


def export_differences(kit: Kit) -> dict[str, float]:
    """Train, export as adapter and merged, reload; largest difference of logits over the largest logit, by kind."""
    if kit.export is None:
        raise PlanError("no function to export with was given", where="self-test", fix="start it with mcit doctor")
    config = run_config(world.size(), kit.engine.model_dump(mode="json", exclude={"micro_batch", "workers"}))
    made: list[Plan] = []
    on_first(world, lambda: made.append(planning.make_plan(config)))
    plan = on_all(world, lambda: made[0] if made else planning.make_plan(config))
    run = _open(plan, kit)
    session = Session(plan, run, Silent())
    with run.locked():
        train(session, plan.stages[0], reporter=Silent(), stop=lambda: False)
        world.barrier()
        found: dict[str, float] = on_first(world, lambda: _compared(session, kit))
    return found


def _open(plan: Plan, kit: Kit) -> Run:
    made: list[Run] = []

    def first() -> str:
        run = open_run(
            plan,
            runs_dir=kit.folder / "runs",
            config_text="",
            resolved=record.resolved(plan.config),
            plan_json=record.plan_json(plan),
            environment={**kit.environment, "ranks": world.size()},
        )
        made.append(run)
        return str(run.layout.root)

    root = on_first(world, first)
    run = made[0] if made else Run(Path(root))
    run.share(world)
    return run


def _compared(session: Session, kit: Kit) -> dict[str, float]:
    """On rank 0 alone: the model in memory against both exports."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    batch = kit.together(kit.rows(3, seed=40))
    expected = _logits(session.model_after(1), batch, kit.device)
    largest = max(1.0, float(expected.abs().max()))
    out = {}
    for kind in ("adapter", "merged"):
        folder = kit.folder / kind
        kit.export(session.run, stage=1, kind=kind, out=folder)  # type: ignore[misc]
        base = session.plan.model_path if kind == "adapter" else folder
        model: Any = AutoModelForImageTextToText.from_pretrained(str(base), dtype=torch.float32)
        if kind == "adapter":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                model = PeftModel.from_pretrained(model, str(folder))
        found = _logits(model.to(kit.device), batch, kit.device)
        out[kind] = float((found - expected).abs().max()) / largest
    untrained: Any = AutoModelForImageTextToText.from_pretrained(str(session.plan.model_path), dtype=torch.float32)
    effect = float((_logits(untrained.to(kit.device), batch, kit.device) - expected).abs().max()) / largest
    if not effect > 100 * kit.tolerance:
        what = f"training moved the logits by {effect:.1e} only, too little to compare"
        raise PlanError(what, where="self-test", fix="report it with the output of mcit doctor --json")
    return out


@torch.no_grad()
def _logits(model: Any, batch: Batch, device: torch.device) -> Tensor:
    model.eval()
    out: Tensor = model(
        input_ids=batch.input_ids_BT.to(device),
        attention_mask=batch.attention_BT.to(device),
        use_cache=False,
        **{name: value.to(device) for name, value in batch.pixels.items()},
    ).logits
    return out[batch.attention_BT.bool().to(device)]
