"""``mcit plan``: every check, then stages, hooks, steps and sizes. Loads no weights."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import config_arguments, print_json, reporter, runs_dir, start_torch
from mcit.cli.log import Logged
from mcit.cli.team import refuse
from mcit.core.doing import doing, told_to
from mcit.core.errors import PlanError
from mcit.core.interfaces import Silent
from mcit.core.types import JsonDict, Plan, Stage

if TYPE_CHECKING:
    from mcit.core.schema import RunConfig
    from mcit.plan.resources import RunEstimate


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("plan", help="check a config and print what it would do")
    config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    parser.add_argument("--nproc", type=int, metavar="N", help="check for a run on N processes (default: 1)")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="name the cheapest engine that fits a device of, say, 24G")
    parser.add_argument("--fetch", action="store_true", help="download what a first run would download")
    parser.set_defaults(verb="plan")


def run(args: argparse.Namespace) -> int:
    """Check and print; what is not in the cache yet is named instead of being fetched."""
    from mcit.plan.plan import read_config

    config, _ = read_config(args.config, args.set)  # schema and references first, without torch
    refuse(config, nproc=args.nproc, here=not args.gpu_memory)  # a stated device memory asks about another machine
    memory = _size(args.gpu_memory)
    with contextlib.closing(Logged(Silent() if args.json else reporter())) as out:
        waiting, plan = _checked(config, out, fetch=args.fetch)
    if plan is None:
        note = f"schema and references are in order; the rest needs a download first: {waiting} (mcit plan --fetch)"
        if args.json:
            print_json({"name": config.name, "needs_download": waiting, "notes": [note]})
        else:
            print(note)
        return 0
    from mcit.plan.packs import packs_refused
    from mcit.plan.record import plan_json
    from mcit.plan.resources import estimate, resource_problems, suggestion
    from mcit.plan.vision import vision_facts, vision_line

    cuda = True if memory else None  # a stated device memory asks about such a device, whatever this machine has
    found = estimate(plan, nproc=args.nproc or 1, cuda=cuda)
    if memory:
        advice = suggestion(plan, found, memory=memory)
    else:
        advice = None
        problems = resource_problems(plan, found, runs_dir(args))
        if any(p.level == "problem" for p in problems):
            raise PlanError.of([p for p in problems if p.level == "problem"])
        plan = replace(plan, notes=(*plan.notes, *(str(p) for p in problems)))
    refused, vision = packs_refused(plan), vision_facts(plan)
    content = plan_json(plan)
    if args.json:
        needs, packs = {**found.json(), "suggestion": advice}, {"used": not refused, "refused": refused}
        print_json({**content, "notes": plan.notes, "packs": packs, "vision_cache": vision, "estimate": needs})
    else:
        show(plan, content, found, refused)
        show_estimate(plan, found)
        if vision:
            show_line(vision_line(vision))
        print(advice or "no problems found")
    return 0


def _checked(config: RunConfig, out: Logged, *, fetch: bool) -> tuple[str | None, Plan | None]:
    """What has to be downloaded first, or the plan."""
    with told_to(out.doing):
        doing("loading torch and transformers")
        start_torch(computes=False)
        from mcit.core.fetch import NeedsDownload, without_network
        from mcit.models.load import pending
        from mcit.plan.plan import make_plan

        waiting = None if fetch else pending(config.base)
        if waiting:
            return waiting, None
        try:
            with contextlib.nullcontext() if fetch else without_network():
                return None, make_plan(config, announce=out.line)
        except NeedsDownload as error:
            return error.what.removeprefix("has to be downloaded first: "), None


def _size(text: str | None) -> int | None:
    from mcit.engine.estimate.sizes import parse_size

    try:
        return parse_size(text) if text else None
    except ValueError:
        raise PlanError(
            f"'{text}' is no amount of memory", where="--gpu-memory", fix="write 24G, 81920M or bytes"
        ) from None


def show(plan: Plan, content: dict[str, Any], found: RunEstimate, refused: str) -> None:
    """The plan in 80 columns: what all stages have in common is said once; what trains is what their methods leave of it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{plan.config.name} ({plan.digest[:8]}), base {plan.model_path.name}", highlight=False)
    packs = {"packs": "no" if refused else "yes"}
    facts = [
        {**_facts(stage, needs.shape.trained), **packs} for stage, needs in zip(plan.stages, found.stages, strict=True)
    ]
    common = [name for name in facts[0] if all(f[name] == facts[0][name] for f in facts)]
    console.print(f"every stage: {', '.join(f'{name} {facts[0][name]}' for name in common)}", highlight=False)
    table = Table(box=None, pad_edge=False)
    columns = [name for name in facts[0] if name not in common]
    for column in ("stage", "tasks", "rows", "steps", *columns):
        table.add_column(column, justify="right" if column in ("rows", "steps", "batch", "trains") else "left")
    for stage, fact in zip(plan.stages, facts, strict=True):
        tasks = ", ".join(t.name for t in stage.tasks)
        table.add_row(stage.folder, tasks, str(stage.rows), str(stage.steps), *(fact[name] for name in columns))
    console.print(table)
    for line in (*_hook_lines(content["stages"]), *_watched_lines(plan)):
        console.print(line, highlight=False)
    for note in (*plan.notes, *([f"rows are padded, not packed: {refused}"] if refused else [])):
        console.print(f"note: {note}", highlight=False)


def _facts(stage: Stage, trained: int) -> dict[str, str]:
    """What is often alike in all stages, in words."""
    adapter = stage.adapter
    more = (" rs" if adapter.rslora else "") + (f" E={adapter.experts}" if adapter.experts else "")
    return {
        "batch": str(stage.optim.batch),
        "adapter": f"r={adapter.rank} a={adapter.alpha:g}{more}" if adapter.kind != "none" else "full",
        "carry": adapter.carry,
        "trains": f"{trained:,}",
        "methods": ", ".join(m.name for m in stage.methods) or "-",
    }


def _hook_lines(stages: list[JsonDict]) -> list[str]:
    """Who acts on which hook, once for stages in a row that are alike."""
    lines = []
    for hooks, group in itertools.groupby(stages, key=lambda stage: stage["hooks"]):
        alike = [stage["folder"] for stage in group]
        where = alike[0] if len(alike) == 1 else f"{alike[0]} … {alike[-1]}"
        lines += [f"{where}: {hook} <- {', '.join(names)}" for hook, names in hooks.items()]
    return lines


def _watched_lines(plan: Plan) -> list[str]:
    """Gates, and what probes were asked for."""
    lines = []
    for stage in plan.stages:
        if stage.gate is not None:
            counts = len(stage.gate.config.thresholds), len(stage.gate.config.monitor)
            lines.append(f"{stage.folder}: gate {Path(stage.gate.file).name}, {counts[0]} to pass, {counts[1]} watched")
    for entry in plan.config.probes:
        asked = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "use")
        lines.append(f"probe {entry['use']}" + (f": {asked}" if asked else ""))
    return lines


def show_line(text: str) -> None:
    """A sentence in as many lines as it needs."""
    from rich.console import Console

    Console().print(text, highlight=False)


def show_estimate(plan: Plan, found: RunEstimate) -> None:
    """Bytes per device and engine for the worst stage; disk, checkpoints and tokens of the run."""
    from rich.console import Console
    from rich.table import Table

    from mcit.engine.estimate.sizes import size_text

    console, batch, worst = Console(), found.batch, found.worst
    unit, shift = ("GiB", 30) if worst.rows[0].device >= 1 << 30 else ("MiB", 20)
    device = "device" if worst.shape.cuda else "process (the device is a CPU)"
    console.print(
        f"estimated {unit} per {device}: stage {worst.folder}, {found.nproc} process(es), "
        f"{batch.rows} rows x {batch.positions} positions",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for column in ("engine", "frozen", "trained", "grad", "optim", "buffers", "activ", "total", "host"):
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    engine = plan.config.engine
    for row in worst.rows:
        chosen = "*" if (row.kind, row.offload) == (engine.kind, engine.offload) else ""
        parts = (row.frozen, row.trained, row.gradients, row.optimizer, row.buffers, row.activations)
        table.add_row(row.short + chosen, *(f"{n / (1 << shift):,.2f}" for n in (*parts, row.device, row.host)))
    console.print(table)
    lines = [
        "+opt, +par: offload optimizer, parameters; total: with reference copies, and 1 GiB reserve on a GPU;",
        "host: memory of each process beside the device; *: as configured",
        f"tokens: about {sum(stage.tokens for stage in found.stages):,}; "
        f"steps: {sum(stage.steps for stage in found.stages):,}",
        f"disk: about {size_text(found.disk)}; a checkpoint: {size_text(max(s.checkpoint for s in found.stages))}, "
        f"{found.checkpoint_seconds:.1f} s at 500 MB/s (assumed; see mcit doctor)",
    ]
    for line in lines:
        console.print(line, highlight=False)
