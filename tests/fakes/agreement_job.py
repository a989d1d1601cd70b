"""Train plans with one engine: ``python -m tests.fakes.agreement_job KIND OFFLOAD FOLDER NAME=JSON…``.

Each JSON holds changes to the agreement plan, ``{"method": NAME}`` for the plan of a method, ``{"family": [FOLDER, RECIPE…]}``
for one of a model's folder, or ``{"questions": FOLDER}`` for one of several questions per picture, made there. Every rank
leaves two files per plan in a folder of its own: ``changes.safetensors``, what each stage did to each unit (scale * B @ A for
a LoRA pair, end minus start for other tensors), and ``steps.json``, the metrics of every step.
"""

import json
import sys
from pathlib import Path

import torch

from mcit.core.files import read_json
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.engine import world
from mcit.models.adapterfile import product, read_adapter
from mcit.models.load import load_base
from tests.fakes import bench
from tests.fakes.bench import TINY, config_of, plan_of, run_plan
from tests.fakes.families.task import config as family_config
from tests.fakes.method_plans import named_plan
from tests.fakes.packs import question_settings

CALM = {"lr": 2e-3, "lr_projector": 2e-4}
"""Learning rates at which the order of sums does not grow over 50 steps as it does at those of TINY."""
STEADY = {"eps": 1e-3}
"""AdamW's first updates are plus or minus the learning rate however small a gradient is, rounding included; this eps lets small
gradients make small updates, so that what is compared is the gradients and not their last bits."""
GERE_50 = {"steps": 50, "optim": CALM, "gere": {"weight": 1.0}}
"""Fifty steps with RegLoRA and, in the second stage, GeRe with the smaller fixed weight of its paper.

With 100 the margin is nearly all of the gradient, clipping divides by 37, and one process alone is 1e-4 away from itself when
only its micro-batches are cut differently.
"""


def agreement_config(kind="plain", offload="none", *, steps=12, seed=3, optim=None, weight=50.0, gere=None, **engine):
    """Two stages of the tiny model, fp32, dropout 0: RegLoRA and replay; or, with `gere`, RegLoRA and from stage 2 on GeRe."""
    reglora, replay = {"name": "reglora", "weight": weight}, {"name": "replay", "per_step": 4}
    general = {"name": "gere", "recipe": "general/tiny", "per_step": 4, **(gere or {})}
    first, second = TINY["stages"]
    stages = [{**first, "methods": [reglora]}, {**second, "methods": [reglora, general]}] if gere else [first, second]
    return config_of(
        seed=seed,
        stages=stages,
        engine={"kind": kind, "offload": offload, "micro_batch": 2, "workers": 0, **engine},
        defaults={
            "methods": [reglora, replay],
            "optim": {**TINY["defaults"]["optim"], **(optim or {})},
            "max_steps": steps,
        },
    )


def plan_for(kind, offload, *, method=None, family=None, questions=None, **settings):
    """The plan of a method, of a family's folder (a list: folder, then recipes), of questions, or the agreement plan."""
    if questions:
        engine = {"kind": kind, "offload": offload, "micro_batch": 6, "workers": 0}
        folder = Path(questions) / f"rank-{world.rank()}"
        return plan_of(**question_settings(folder, **STEADY), engine=engine)
    if family:
        return plan_of(**family_config(*family, engine={"kind": kind, "offload": offload}))
    if method:
        engine = {"kind": kind, "offload": offload, "micro_batch": 4, "workers": 0}
        return named_plan(method, engine=engine, optim={**TINY["defaults"]["optim"], **STEADY})
    return plan_of(**agreement_config(kind, offload, **settings))


def changes(base, stages):
    """Weight change of each unit and committed stage (folders in order), fp64."""
    start = {n: p.detach() for n, p in load_base(base, dtype="fp32").named_parameters()}
    out = {}
    for index, folder in enumerate(stages, start=1):
        full = {}
        if (folder / "adapter").is_dir():
            file = read_adapter(folder / "adapter")
            out |= {f"{index}|{name}": effect(f"{index}|{name}", pair, start) for name, pair in file.lora.items()}
            full = dict(file.full)
        for path in (folder / "extra.safetensors", folder / "weights" / "model.safetensors"):
            full |= load_tensors(path) if path.is_file() else {}
        for name, value in full.items():
            out[f"{index}|{name}"] = value.double() - start[name].double()
            start[name] = value
    return out


def effect(name, pair, start):
    """Of a plain pair its product; of a mixture, which has none, the change of all its tensors since the stage before, as one.

    A router hardly moves in a few steps: its own change is no larger than the rounding of its values.
    """
    if pair.router_EI is None:
        return product(pair).double()
    module, parts = name.partition("|")[2], []
    for part, value in (("A", pair.A_RI), ("B", pair.B_OR), ("router", pair.router_EI)):
        before = start.get(f"{module}:{part}", torch.zeros_like(value) if part == "B" else value)
        start[f"{module}:{part}"] = value  # what A and router of the first stage began with is not on disk
        parts.append((value.double() - before.double()).flatten())
    return torch.cat(parts)


def changes_of_run(root):
    """The same of a run directory."""
    plan = read_json(Path(root) / "plan.json")
    return changes(plan["base"], [Path(root) / "stages" / stage["folder"] for stage in plan["stages"]])


def main():
    kind, offload, folder, *plans = sys.argv[1:]
    torch.set_num_threads(1)
    world.init(300, cpu=True)
    for given in plans:
        name, _, settings = given.partition("=")
        home = Path(folder) / name / f"rank-{world.rank()}"
        plan, steps = plan_for(kind, offload, **json.loads(settings)), []
        bench.Draft.record = lambda self, step, metrics, steps=steps: steps.append(metrics)
        run_plan(plan, home, blobs=Path(folder) / name / "blobs")
        (home / "steps.json").write_text(json.dumps(steps))
        save_tensors(home / "changes.safetensors", changes(plan.model_path, [home / s.folder for s in plan.stages]))
    world.shutdown()


if __name__ == "__main__":
    main()
