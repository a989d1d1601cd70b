"""``mcit report``: matrix and metrics of a run, or of several side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, StateError
from mcit.runs.layout import SWEEP, RunLayout


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("report", help="score matrix, forgetting and costs of runs")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run or a sweep; several runs are shown side by side"
    )
    parser.add_argument("--mode", choices=("strict", "fixed"), help="scorer mode (default: the one the run was set to)")
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="write one HTML page (default: the run's report/report.html)",
    )
    parser.add_argument("--figures", action="store_true", help="with --html: every chart beside it as SVG and PNG")
    parser.add_argument("--json", action="store_true", help="print JSON: an object for one run, a list for several")
    parser.set_defaults(verb="report")


def run(args: argparse.Namespace) -> int:
    """Print; for a single run in its own scorer mode write ``report/`` too."""
    from mcit.report.tables import compare, full_report, render_terminal, write_report

    runs = [Path(name) for name in args.runs]
    if args.html is not None:
        return _page(runs, args)
    if args.figures:
        raise ConfigError("goes with --html only", where="--figures", fix="add --html")
    if len(runs) == 1 and (runs[0] / SWEEP).is_file():
        from mcit.cli.sweep import show
        from mcit.report.sweep import write_sweep

        show(runs[0], write_sweep(runs[0]), mode=args.mode, as_json=args.json)
        return 0
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
        try:
            paths = write_report(runs[0])
        except StateError as error:  # a run can be read where nothing can be written
            print(f"note: the report was not written: {error}", file=sys.stderr)
            return 0
        if not args.json:
            for kind, path in paths.items():
                print(f"{kind}: {path}")
    return 0


def _page(runs: list[Path], args: argparse.Namespace) -> int:
    """Write the page; print where it is."""
    from mcit.core.files import canonical_json
    from mcit.report.page.html import write_page

    if not args.html and len(runs) > 1:
        raise ConfigError("a page of several runs needs a name", where="--html", fix="say --html FILE")
    target = Path(args.html) if args.html else RunLayout(runs[0]).page
    if target.is_dir():
        raise ConfigError("is a folder", where=str(target), fix="name a file, such as comparison.html")
    paths = [str(path) for path in write_page(runs, target, mode=args.mode, figures=args.figures)]
    print(canonical_json({"html": paths}) if args.json else "\n".join(f"html: {path}" for path in paths))
    return 0
