"""Train the agreement plan with one engine: ``python -m tests.fakes.agreement_job KIND OFFLOAD FOLDER JSON``.

JSON holds changes to the plan. Every rank leaves two files in a folder of its own: ``changes.safetensors``, what each stage did
to each unit (scale * B @ A for a LoRA pair, end minus start for other tensors), and ``steps.json``, the metrics of every step.
"""

import json
import sys
from pathlib import Path

import torch

from mcit.core.tensorfile import save_tensors
from mcit.engine import world
from mcit.models.adapterfile import product, read_adapter
from mcit.models.load import load_base
from tests.fakes import bench
from tests.fakes.bench import TINY, plan_of, run_plan


def plan_for(kind, offload, steps=12, seed=3, optim=None, weight=50.0, **engine):
    """Two stages of the tiny model with RegLoRA and replay, fp32, dropout 0."""
    return plan_of(
        seed=seed,
        engine={"kind": kind, "offload": offload, "micro_batch": 2, "workers": 0, **engine},
        defaults={
            "methods": [{"name": "reglora", "weight": weight}, {"name": "replay", "per_step": 4}],
            "optim": {**TINY["defaults"]["optim"], **(optim or {})},
            "max_steps": steps,
        },
    )


def changes(plan, folder):
    """Weight change of each unit and stage, fp64."""
    start = dict(load_base(plan.model_path, dtype="fp32").named_parameters())
    out = {}
    for stage in plan.stages:
        file = read_adapter(folder / stage.folder / "adapter")
        for name, pair in file.lora.items():
            out[f"{stage.index}|{name}"] = product(pair).double()
        for name, value in file.full.items():
            out[f"{stage.index}|{name}"] = value.double() - start[name].detach().double()
            start[name] = value
    return out


def main():
    kind, offload, folder, settings = sys.argv[1:]
    torch.set_num_threads(1)
    world.init(300, cpu=True)
    home = Path(folder) / f"rank-{world.rank()}"
    plan = plan_for(kind, offload, **json.loads(settings))
    steps = []
    bench.Draft.record = lambda self, step, metrics: steps.append(metrics)
    run_plan(plan, home)
    (home / "steps.json").write_text(json.dumps(steps))
    save_tensors(home / "changes.safetensors", changes(plan, home))
    world.shutdown()


if __name__ == "__main__":
    main()
