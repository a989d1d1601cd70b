"""``mcit compare``: what differs between two runs, and what that did to the scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("compare", help="what differs between two runs, and what that did to the scores")
    parser.add_argument("first", metavar="A", help="folder of a run")
    parser.add_argument("second", metavar="B", help="folder of another one, told against A")
    parser.add_argument(
        "--mode", choices=("strict", "fixed"), help="scorer mode (default: the one each run was set to)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="compare")


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from mcit.core.files import canonical_json
    from mcit.report.compare import comparison, render

    found = comparison(Path(args.first), Path(args.second), mode=args.mode)
    if args.json:
        print(canonical_json(found))
        return 0
    from rich.console import Console

    console = Console()
    for letter, name in zip("AB", found["names"], strict=True):
        console.print(f"{letter}: {name}", highlight=False, markup=False)
    for sentence in found["words"]:
        console.print(sentence, highlight=False, markup=False)
    for table in render(found):
        console.print(table)
    return 0
