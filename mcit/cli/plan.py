"""``mcit plan``: every check, then stages, hooks, steps and sizes. Loads no weights."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mcit.cli.common import config_arguments
from mcit.core.types import Plan


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("plan", help="check a config and print what it would do")
    config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    parser.set_defaults(verb="plan")


def run(args: argparse.Namespace) -> int:
    """Check and print."""
    from mcit.train.plan import read_config

    config, _ = read_config(args.config, args.set)  # schema and references first, without torch
    from mcit.cli.common import runs_dir, start_torch

    start_torch()
    from mcit.train.plan import make_plan, plan_json

    plan = make_plan(config, announce=None if args.json else print, runs_dir=runs_dir(args))
    from mcit.models.load import base_digest

    content = plan_json(plan, base_sha256=base_digest(plan.model_path))
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
