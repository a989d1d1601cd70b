"""``mcit run``: plan, create or continue the run, train, score, report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcit.cli.common import StopFlag, config_arguments
from mcit.core.types import Plan


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("run", help="train a sequence; on an existing run, continue it")
    config_arguments(parser)
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    parser.add_argument("--new", action="store_true", help="start beside an unfinished run of the same name")
    parser.set_defaults(verb="run")


def run(args: argparse.Namespace) -> int:
    """Plan, then everything that is not done yet."""
    from mcit.train.plan import read_config

    config, text = read_config(args.config, args.set)  # schema and references first, without torch

    def planned(out: Any) -> Plan:
        from mcit.train.plan import make_plan

        return make_plan(config, announce=out.line, runs_dir=Path(args.runs_dir))

    return go(planned, runs_dir=Path(args.runs_dir), config_text=text, as_json=args.json, new=args.new)


def go(
    planned: Callable[[Any], Plan],
    *,
    runs_dir: Path,
    config_text: str,
    as_json: bool,
    new: bool = False,
    accept_changes: bool = False,
) -> int:
    """Plan, open the run, train and score under its lock, then print the report and where everything is."""
    from mcit.cli import common

    stop = StopFlag()
    stop.install()
    common.start_torch()
    from mcit.runs.run import open_run
    from mcit.train import plan as planning
    from mcit.train.sequence import run_sequence

    out = common.reporter()
    try:
        plan = planned(out)
        opened = open_run(
            plan,
            runs_dir=runs_dir,
            config_text=config_text,
            resolved=planning.resolved(plan.config),
            plan_json=planning.plan_json(plan),
            environment=common.environment(),
            accept_changes=accept_changes,
            new=new,
        )
        with opened.locked():
            out.line(f"run {opened.layout.root}")
            for note in opened.notes:
                out.line(f"note: {note}")
            run_sequence(plan, opened, reporter=out, stop=stop)
            paths = finish(opened.layout.root)
    finally:
        close = getattr(out, "close", None)
        if close:
            close()
    show(opened.layout.root, paths, as_json=as_json)
    return 0


def finish(root: Path) -> dict[str, str]:
    """Write the report; returns its paths."""
    from mcit.report.tables import write_report

    return {kind: str(path) for kind, path in write_report(root).items()}


def show(root: Path, paths: dict[str, str], *, as_json: bool) -> None:
    """Matrix, metrics and paths."""
    from mcit.report.matrix import read_matrix

    if as_json:
        print(json.dumps({"run": str(root), "report": paths, **read_matrix(root)}, ensure_ascii=False))
        return
    from rich.console import Console

    from mcit.report.tables import render_terminal

    console = Console()
    for part in render_terminal(read_matrix(root)):
        console.print(part)
    for kind, path in paths.items():
        print(f"{kind}: {path}")
    print(f"run: {root}")
