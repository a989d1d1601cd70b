"""``mcit plan``: every check, then stages, hooks, steps and sizes. Loads no weights."""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any

from mcit.cli.common import config_arguments
from mcit.core.types import Plan


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("plan", help="check a config and print what it would do")
    config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    parser.add_argument("--fetch", action="store_true", help="download what a first run would download")
    parser.set_defaults(verb="plan")


def run(args: argparse.Namespace) -> int:
    """Check and print; what is not in the cache yet is named instead of being fetched."""
    from mcit.train.plan import read_config

    config, _ = read_config(args.config, args.set)  # schema and references first, without torch
    from mcit.cli.common import runs_dir, start_torch

    start_torch()
    from mcit.core.fetch import NeedsDownload, without_network
    from mcit.models.load import pending
    from mcit.train.plan import make_plan, plan_json

    waiting = None if args.fetch else pending(config.base)
    plan = None
    if not waiting:
        try:
            with contextlib.nullcontext() if args.fetch else without_network():
                plan = make_plan(config, announce=None if args.json else print, runs_dir=runs_dir(args))
        except NeedsDownload as error:
            waiting = error.what.removeprefix("has to be downloaded first: ")
    if plan is None:
        note = f"schema and references are in order; the rest needs a download first: {waiting} (mcit plan --fetch)"
        print(json.dumps({"name": config.name, "needs_download": waiting, "notes": [note]}) if args.json else note)
        return 0
    content = plan_json(plan)
    if args.json:
        print(json.dumps({**content, "notes": plan.notes}, ensure_ascii=False))
    else:
        show(plan, content)
    return 0


def show(plan: Plan, content: dict[str, Any]) -> None:
    """The plan as tables."""
    from rich.console import Console
    from rich.table import Table

    from mcit.train.preflight import skeleton, trained_parameters

    console = Console()
    model = skeleton(plan)
    table = Table(title=f"{plan.config.name} ({plan.digest[:8]}), base {plan.model_path.name}")
    for column in ("stage", "tasks", "rows", "steps", "batch", "adapter", "carry", "trains", "methods"):
        table.add_column(column)
    for stage in plan.stages:
        adapter = f"r={stage.adapter.rank} a={stage.adapter.alpha:g}" if stage.adapter.kind == "lora" else "full"
        table.add_row(
            stage.folder,
            ", ".join(t.name for t in stage.tasks),
            str(stage.rows),
            str(stage.steps),
            str(stage.optim.batch),
            adapter,
            stage.adapter.carry,
            f"{trained_parameters(model, stage):,}",
            ", ".join(m.name for m in stage.methods) or "-",
        )
    console.print(table)
    for stage, record in zip(plan.stages, content["stages"], strict=True):
        for hook, names in record["hooks"].items():
            console.print(f"{stage.folder}: {hook} <- {', '.join(names)}", highlight=False)
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False)
    console.print("no problems found")
