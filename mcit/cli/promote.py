"""``mcit promote``: let a stage that its gate set aside stand after all, in somebody's name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcit.cli.common import print_json
from mcit.core.types import JsonDict


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    decision_parser(verbs, "promote", "let a stage stand that its gate set aside")


def decision_parser(verbs: Any, verb: str, says: str) -> None:
    """RUN, --stage, --by, --json."""
    parser = verbs.add_parser(verb, help=says)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--stage", type=int, required=True, metavar="K", help="the stage that waits")
    parser.add_argument("--by", default="", metavar="NAME", help="who decides; it is kept in the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb=verb)


def run(args: argparse.Namespace) -> int:
    """Check gate file, stage and the stages below, then move it to its place."""
    from mcit.runs.gates import promote

    return decided(args, promote)


def decided(args: argparse.Namespace, decide: Callable[..., JsonDict]) -> int:
    """Decide under the lock, rewrite the report, say what comes next."""
    from mcit.evals.certificate import certify
    from mcit.runs.run import open_existing

    found = open_existing(Path(args.run))
    with found.locked():
        record = decide(found, args.stage, by=args.by)
        certify(found, args.stage)
        if found.layout.report.is_dir():
            from mcit.cli.run import finish

            finish(found.layout.root)
    if args.json:
        print_json({"run": str(found.layout.root), **record})
    else:
        print(f"stage {record['stage']}: {record['decision']} by {record['by']}; go on with: mcit resume {args.run}")
    return 0
