"""``mcit forget``: take rows out of every analytic head of a run, and certify it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from mcit.cli.common import print_json


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("forget", help="take single rows out of every analytic head of a run, with a certificate")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--rows", required=True, metavar="FILE", help="ids of the rows: a JSON list, or one id a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="forget")


def run(args: argparse.Namespace) -> int:
    """Read the request, change the heads, say what was done and where the certificate is."""
    from mcit.cli.common import Lines, config_of_run, plan_of_run, start_torch
    from mcit.runs.run import open_existing

    found = open_existing(Path(args.run))
    config_of_run(found)
    start_torch()
    from mcit.train.request import forget_rows, read_request

    with found.locked(), tempfile.TemporaryDirectory(prefix="mcit-forget-") as scratch:
        plan = plan_of_run(found)
        rows = read_request(Path(args.rows), plan)
        done = forget_rows(plan, found, rows, scratch=Path(scratch), reporter=Lines())
    if args.json:
        print_json(done)
        return 0
    for head in done["heads"]:
        print(
            f"{head['stage']}/{head['home']}: {head['removed']} rows removed, difference to a refit {head['difference']:.3g}"
        )
    print(f"certificate: {done['folder']}")
    return 0
