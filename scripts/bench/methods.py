"""What the methods cost: step time and memory with and without each, on the embedded model, in one run.

    python scripts/bench/methods.py [--json FILE] [--base embedded] [--steps 20] [--warmup 3] [--only reglora gs_lora …]
    python scripts/bench/methods.py --json FILE --docs docs/methods.md      # the table of a finished file, into the page

Each case is a pair of stages that differ in one thing alone. Both are built on copies of the same model and take their steps in
turn, so that other work on the machine falls on both; the figure is the median of the ratios of neighbouring steps, with
the quartiles. A stage is the second of a sequence: methods that remember an earlier stage do. The cases named `…-stage8` are at
the eighth, those named `…-growth` compare the eighth with the second. Every method that trains on an ordinary stage has a case
of its own name, against sequential training with the same adapter settings. Memory is the largest resident size of a process
that builds one side and takes three steps; equal sides of several cases share it. Finished cases are in the file and are not
measured again with the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.pages import write_between

LORA = {"kind": "lora", "rank": 8, "alpha": 16, "also_train": ["projector"], "carry": "merge"}
KEEP = {**LORA, "carry": "keep"}
POOL = {**LORA, "also_train": [], "carry": "pool"}
FULL = {"kind": "none", "also_train": ["projector"]}
WITH_EMBEDDINGS = {"kind": "none", "also_train": ["projector", "embeddings"]}


@dataclass(frozen=True)
class Case:
    """Two stages to compare: settings and what is promised of their ratio."""

    name: str
    without: dict[str, Any]
    with_: dict[str, Any]
    limit: float | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    stages: tuple[int, int] = (2, 2)
    """Which stage of a sequence each side is."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """Of the second side."""


def stage(methods: list[dict[str, Any]], adapter: dict[str, Any] = LORA, **more: Any) -> dict[str, Any]:
    """The compared stage."""
    return {"methods": methods, "adapter": adapter, **more}


EARLIER = ("demo/kind", "demo/naming")
REG: list[dict[str, Any]] = [{"use": "reglora"}]
FORGET = {"recipe": "demo/naming-retain", "forget": "demo/naming-forget"}


LIMITS = {"ema": 1.05, "ewc": 1.03, "feature_kd": 1.45, "refresh": 2.2, "agem": 2.2}
"""Of the ratio of step times, as the project set them."""
FEW: dict[str, dict[str, Any]] = {
    "agem": {"per_step": 8},
    "ewc": {"rows": 16, "space": "parameters"},
    "fpf": {"steps": 2},
    "frequency_replay": {"visits": {"demo/kind": 3}},
    "refresh": {"every": 1},
}
"""Settings that make the end of the earlier stages short, give a method what it needs, or let it act in every step, on as many
rows of memory as the step has."""
AS_LONG = {"agem": {"recipe": EARLIER[0]}}
"""The compared stage of methods whose limit says what a second pass over the like costs: the rows of memory are its own."""
AROUND = ("sam", "gradient_penalty", "random_smoothing", "curvature")
"""Methods that go around a forget objective and do nothing in an ordinary stage."""
BESIDE = frozenset({*AROUND, "retain_kl", "optimistic_forget"})
"""Methods that are left out of ordinary stages: what they add to belongs to a stage that forgets."""
SPECIAL = frozenset({"reglora", "gere", "hft", "mos"})
"""Methods with a comparison of their own below."""


def suited() -> dict[str, dict[str, Any]]:
    """Every method of an ordinary stage with adapter settings that meet its claims; those that forget are left out."""
    from mcit.core import lookup
    from mcit.core.config import load_yaml
    from mcit.core.paths import shipped
    from mcit.methods.base import Method
    from mcit.methods.check import FORGETS

    out: dict[str, dict[str, Any]] = {}
    for name in lookup.known("methods"):
        file = shipped("configs") / "methods" / f"{name}.yaml"
        if not file.is_file() or name in BESIDE:
            continue
        cls = lookup.class_of("methods", name, base=Method)
        settings = {key: value for key, value in load_yaml(file).items() if key != "name"}
        claims = cls(cls.Config(**(settings | FEW.get(name, {})))).claims
        if (FORGETS | {"decouple"}) & claims.streams or any(need.startswith("stream:") for need in claims.needs):
            continue
        carry = next((need.partition(":")[2] for need in sorted(claims.needs) if need.startswith("carry:")), "merge")
        out[name] = {**(POOL if carry == "pool" else LORA), "carry": carry}
        if "names:kept" in claims.needs:
            out[name] = KEEP
        if "adapter:none" in claims.needs:
            out[name] = FULL
    return out


def method_cases() -> list[Case]:
    """Each of them against sequential training with the same adapter settings."""
    out = []
    for name, adapter in suited().items():
        if name not in SPECIAL:
            more, method = AS_LONG.get(name, {}), {"use": name, **FEW.get(name, {})}
            out.append(Case(name, stage([], adapter, **more), stage([method], adapter, **more), LIMITS.get(name)))
    return out


def cases() -> list[Case]:
    """Every comparison; limits are those the project set itself."""
    gs = {"use": "gs_lora"}
    npo: dict[str, Any] = {"use": "npo", "per_step": 8}
    sixteen = {"optim": {"batch": 16, "lr": 1e-4, "warmup": 0, "schedule": "constant"}}
    return [
        Case("reglora", stage([]), stage(REG), 1.05),
        Case(
            "gs_lora",
            stage([{**gs, "alpha": 0.0}], **FORGET),
            stage([{**gs, "alpha": 1e-4, "alpha_epoch": 0}], **FORGET),
            1.03,
        ),
        Case(
            "gere",
            stage([{"use": "gere", "variant": "label"}]),
            stage([{"use": "gere", "variant": "tm"}]),
            1.05,
        ),
        Case("npo", stage([], recipe=FORGET["recipe"], **sixteen), stage([npo], **FORGET), 1.6),  # as many plain rows
        *(
            Case(name, stage([npo], **FORGET), stage([npo, {"use": name}], **FORGET), 2.1 if name == "sam" else None)
            for name in AROUND
        ),
        *method_cases(),
        Case("ewc-effective", stage([]), stage([{"use": "ewc", "rows": 16}])),
        Case("reglora-stage8", stage([]), stage(REG), 1.08, stages=(8, 8)),
        Case("reglora-growth", stage(REG), stage(REG), 1.08, stages=(2, 8)),
        Case(
            "reglora-gere-growth", stage([*REG, {"use": "gere"}]), stage([*REG, {"use": "gere"}]), 1.08, stages=(2, 8)
        ),
        Case("moe_lora", stage([], KEEP), stage([], {"use": "moe_lora", **KEEP, "kind": "moe_lora"})),
        Case("mos", stage([], POOL), stage([{"use": "mos"}], POOL), 1.05),
        Case("hft", stage([], FULL), stage([{"use": "hft"}], FULL), 0.90),
        Case(
            "hft-checkpointing", stage([], FULL), stage([{"use": "hft"}], FULL), None, {"gradient_checkpointing": True}
        ),
        Case("hft-embeddings", stage([], WITH_EMBEDDINGS), stage([{"use": "hft"}], WITH_EMBEDDINGS)),
    ]


def build(case: Case, side: int, args: argparse.Namespace, folder: Path) -> Any:
    """The last stage of a sequence with the settings of one side, ready to step."""
    from mcit.models import adapters
    from mcit.models.basefiles import base_digest
    from mcit.models.lineage import Lineage
    from mcit.models.load import load_base
    from mcit.plan.plan import make_plan, parse_run
    from mcit.plan.preflight import make_encoder
    from mcit.train.stage import Material, build_stage

    settings = (case.without, case.with_)[side]
    first = {
        "max_steps": 1,
        "epochs": 9,
        **{k: v for k, v in settings.items() if k in ("methods", "adapter")},
    }
    if "forget" in settings:
        first["methods"] = []  # a learn stage comes before
    earlier = [{"recipe": EARLIER[k % 2], "name": f"earlier-{k}", **first} for k in range(case.stages[side] - 1)]
    last = {"recipe": "demo/edible", "max_steps": args.warmup + args.steps, "epochs": 9, **settings}
    config, problems = parse_run(
        {
            "name": "bench",
            "base": {"family": args.base, "dtype": "fp32"},
            "engine": {"micro_batch": 8, "workers": 0, **case.engine},
            "defaults": {"optim": {"batch": 8, "lr": 1e-4, "warmup": 0, "schedule": "constant"}},
            "stages": [*earlier, last],
            "eval": {"tasks": "none"},
            "checkpoint": {"every": 0},
            "probes": case.probes if side else [],
            **({"router": {"use": "oracle"}} if last["adapter"].get("carry") == "pool" else {}),
        }
    )
    if config is None or problems:
        raise SystemExit("\n".join(map(str, problems)))
    plan = make_plan(config)
    model = load_base(plan.model_path, dtype="fp32")
    material = Material(plan, model, make_encoder(plan), Lineage(str(plan.model_path), base_digest(plan.model_path)))
    inherited: dict[str, Path] = {}
    for stage in plan.stages[:-1]:
        before = build_stage(stage, material, inherited=inherited)
        before.methods.on_stage_start(before.ctx)
        step(before, 0)
        before.ctx.enter("end")
        before.methods.on_stage_end(before.ctx)
        before.methods.save(folder / str(stage.index))
        before.streams.close()
        if stage.adapter.kind != "none":
            adapters.remove(model)
        model.requires_grad_(False)
        inherited = {method.name: folder / str(stage.index) / method.name for method in before.methods.methods}
    work = build_stage(plan.stages[-1], material, inherited=inherited)
    work.methods.on_stage_start(work.ctx)
    return work


def step(work: Any, number: int) -> float:
    """One whole optimiser step, hooks and data included; seconds."""
    from mcit.train.loop import run_step

    start = time.perf_counter()
    work.ctx.at(number)
    batches = [work.methods.on_batch(batch, work.ctx) for batch in work.streams.next_step()]
    run_step(work, batches)
    work.methods.after_step(work.ctx)
    return time.perf_counter() - start


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Ratios of neighbouring steps and seconds of both."""
    with tempfile.TemporaryDirectory() as home:
        works = [build(case, side, args, Path(home) / str(side)) for side in (0, 1)]
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(args.warmup + args.steps):
            for side in (0, 1) if number % 2 else (1, 0):  # neither side always goes first
                took = step(works[side], number)
                if number >= args.warmup:
                    seconds[side].append(took)
        for work in works:
            work.streams.close()
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "case": case.name,
        "seconds_without": statistics.median(seconds[0]),
        "seconds_with": statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "quartiles": [quarters[0], quarters[2]],
        "limit": case.limit,
        "steps": args.steps,
        "load": round(os.getloadavg()[0], 1),
    }


def told(found: dict[str, Any]) -> str:
    """A case in a line."""
    limit, (low, high) = found["limit"], found["quartiles"]
    held = "" if limit is None else f"  limit {limit:.2f}: {'held' if found['ratio'] <= limit else 'NOT HELD'}"
    return (
        f"{found['case']:<18} {found['seconds_without']:7.3f} s -> {found['seconds_with']:7.3f} s  ratio {found['ratio']:.3f}"
        f" ({low:.3f} to {high:.3f})  memory {found['memory']:.3f}{held}"
    )


def peak(case: Case, side: int, args: argparse.Namespace, known: dict[str, float]) -> float:
    """MB of a process of its own that builds one side and takes three steps; equal sides of several cases are `known` then."""
    probes = case.probes if side else []
    key = json.dumps([(case.without, case.with_)[side], case.engine, case.stages[side], probes, args.base])
    if key not in known:
        command = [sys.executable, __file__, "--base", args.base, "--peak", case.name, str(side)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        known[key] = float(done.stdout.split()[-1])
    return known[key]


def own_peak(case: Case, side: int, args: argparse.Namespace) -> float:
    """The same, in this process."""
    import torch

    from mcit.engine.peak import peak_bytes

    with tempfile.TemporaryDirectory() as home:
        work = build(case, side, args, Path(home))
        for number in range(3):
            step(work, number)
        work.streams.close()
    return peak_bytes(torch.device("cpu")) / 1e6


def table(results: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """The cases as Markdown."""
    lines = ["| case | step time, ratio | quartiles | limit | memory, ratio | step |", "|---|---|---|---|---|---|"]
    for one in results:
        limit = f"{one['limit']:.2f}" if one["limit"] else ""
        low, high = one["quartiles"]
        lines.append(
            f"| `{one['case']}` | {one['ratio']:.3f} | {low:.3f} to {high:.3f} | {limit} | {one['memory']:.3f} "
            f"| {one['seconds_without']:.2f} s -> {one['seconds_with']:.2f} s |"
        )
    loads = [one["load"] for one in results]
    about = (
        f"{machine['cpus']}-core CPU machine, {machine['threads']} thread(s), torch {machine['torch']}, base "
        f"`{machine['base']}`; medians of {results[0]['steps']} pairs of steps, one run, load {min(loads)} to {max(loads)}."
    )
    return "\n".join([about, "", *lines])


MARKS = ("<!-- bench: written by scripts/bench/methods.py -->", "<!-- bench: end -->")


def main() -> int:
    """Measure what the file does not have yet, print, write."""
    parser = argparse.ArgumentParser(description="step-time and memory overhead of the methods")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="measure nothing, write the file's table into a page")
    parser.add_argument("--base", default="embedded", help="model family: embedded or tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    kept = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {"machine": {}, "cases": []}
    if args.docs:
        write_between(args.docs, MARKS, table(kept["cases"], kept["machine"]))
        return 0
    from mcit.cli.common import start_torch

    start_torch()
    import torch

    if args.peak:
        (case,) = [case for case in cases() if case.name == args.peak[0]]
        print(own_peak(case, int(args.peak[1]), args))
        return 0
    machine = {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "base": args.base,
    }
    done = {one["case"]: one for one in kept["cases"] if kept["machine"] == machine and one["steps"] == args.steps}
    known: dict[str, float] = {}
    wanted = [case for case in cases() if not args.only or case.name in args.only]
    for case in wanted:
        if case.name not in done:
            done[case.name] = measure(case, args)
        found = done[case.name]
        if "peak_mb" not in found:
            found["peak_mb"] = [peak(case, side, args, known) for side in (0, 1)]
            found["memory"] = found["peak_mb"][1] / found["peak_mb"][0]
            print(told(found), flush=True)
        if args.json:
            args.json.write_text(json.dumps({"machine": machine, "cases": list(done.values())}, indent=1) + "\n")
    results = list(done.values())
    return 1 if any(r["limit"] is not None and r["ratio"] > r["limit"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
