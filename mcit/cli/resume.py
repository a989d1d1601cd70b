"""``mcit resume``: continue a run from its folder alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcit.cli.common import StopFlag


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("resume", help="continue a run, given its folder")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although recipes, versions or method state differ; the differences go to the ledger",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="resume")


def run(args: argparse.Namespace) -> int:
    """Resolve the stored config again, compare, go on."""
    from mcit.runs.run import open_existing

    found = open_existing(Path(args.run))
    from mcit.cli.common import environment, plan_of_run, reporter, start_torch
    from mcit.cli.run import go

    stop = StopFlag()
    stop.install()
    start_torch()
    from mcit.runs.run import open_run
    from mcit.train.plan import plan_json, resolved

    out = reporter()
    try:
        plan = plan_of_run(found)
        root = found.layout.root
        opened = open_run(
            plan,
            runs_dir=root.parent,
            config_text=(root / "config.yaml").read_text(),
            resolved=resolved(plan.config),
            plan_json=plan_json(plan),
            environment=environment(),
            accept_changes=args.accept_changes,
        )
        return go(plan, opened, out=out, stop=stop, as_json=args.json)
    finally:
        close = getattr(out, "close", None)
        if close:
            close()
