"""``mcit rollback``: go back to an earlier stage of a run; what came after it is deleted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mcit.cli.common import print_json
from mcit.core.errors import ConfigError


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("rollback", help="remove the stages after stage K, with their scores and exports")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--to-stage", type=int, required=True, metavar="K", help="the last stage to keep; 0 keeps none")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="rollback")


def run(args: argparse.Namespace) -> int:
    """Show what would go, ask, remove, rewrite the report."""
    from mcit.runs.rollback import check, removed_by, rollback
    from mcit.runs.run import open_existing

    found = open_existing(Path(args.run))
    with found.locked():
        check(found, args.to_stage)
        folders = [str(path.relative_to(found.layout.root)) for path in removed_by(found, args.to_stage)]
        if folders and not args.yes and not _confirmed(folders):
            raise ConfigError("nothing was removed", where="mcit rollback", fix="confirm with y, or give --yes")
        removed = rollback(found, args.to_stage)
        if found.layout.report.is_dir():
            from mcit.cli.run import finish

            finish(found.layout.root)
    if args.json:
        print_json({"run": str(found.layout.root), "to_stage": args.to_stage, "removed": removed})
        return 0
    for name in removed:
        print(f"removed {name}")
    print(f"run: {found.layout.root}, {len(found.committed())} of {len(found.stage_folders())} stages committed")
    return 0


def _confirmed(folders: list[str]) -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not sys.stdin.isatty():
        return False
    print("this removes for good:", *folders, sep="\n  ")
    return input("go on? [y/N] ").strip().lower() in ("y", "yes")
