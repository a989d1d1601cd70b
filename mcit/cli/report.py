"""``mcit report``: matrix and metrics of a run, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("report", help="score matrix, forgetting and costs of runs")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; several are shown side by side")
    parser.add_argument("--mode", choices=("strict", "fixed"), help="scorer mode (default: the one the run was set to)")
    parser.add_argument("--json", action="store_true", help="print JSON: an object for one run, a list for several")
    parser.set_defaults(verb="report")


def run(args: argparse.Namespace) -> int:
    """Print; for a single run in its own scorer mode write ``report/`` too."""
    from mcit.report.tables import compare, full_report, render_terminal, write_report

    runs = [Path(name) for name in args.runs]
    reports = [full_report(path, mode=args.mode) for path in runs]
    if args.json:
        from mcit.core.files import canonical_json

        print(canonical_json(reports[0] if len(reports) == 1 else reports))
    elif len(reports) > 1:
        print(compare(reports), end="")
    else:
        from rich.console import Console

        console = Console()
        for part in render_terminal(reports[0]):
            console.print(part)
    if len(runs) == 1 and args.mode is None:
        paths = write_report(runs[0])
        if not args.json:
            for kind, path in paths.items():
                print(f"{kind}: {path}")
    return 0
