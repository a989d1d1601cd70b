"""``mcit resume``: continue a run from its folder alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcit.cli.common import profile_argument, trust_argument
from mcit.cli.team import nproc_argument


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("resume", help="continue a run, given its folder")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although recipes, versions or method state differ; the differences go to the ledger",
    )
    trust_argument(parser)
    profile_argument(parser)
    nproc_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="resume")


def run(args: argparse.Namespace) -> int:
    """Resolve the stored config again, compare, go on."""
    from mcit.runs.run import open_existing, open_run

    found = open_existing(Path(args.run))
    from mcit.cli import team
    from mcit.cli.common import config_of_run, plan_of_run
    from mcit.cli.run import go

    config = config_of_run(found)
    code = team.started(args, config)
    if code is not None:
        return code
    root = found.layout.root
    return go(
        lambda out: plan_of_run(found),
        lambda plan, start: open_run(
            plan, runs_dir=root.parent, root=root, accept_changes=args.accept_changes, **start
        ),
        engine=config.engine,
        config_text=(root / "config.yaml").read_text(),
        as_json=args.json,
        trust_mtime=args.trust_mtime,
        profile=args.profile,
    )
