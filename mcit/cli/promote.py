"""``mcit promote``: let a stage that its gate set aside stand after all, in somebody's name."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import print_json
from mcit.core.types import JsonDict

if TYPE_CHECKING:
    from mcit.runs.run import Run


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
    """Check gate file, stage, its scores and the stages below, then move it to its place."""
    from mcit.core.errors import StateError
    from mcit.evals.score import SCORE, read_rows
    from mcit.runs.gates import EVALS, promote

    def promoted(run: Run, stage: int, *, by: str) -> JsonDict:
        folders = run.stage_folders()
        scored = run.layout.aside(folders[stage - 1]) / EVALS if 1 <= stage <= len(folders) else None
        for task in sorted(scored.glob("[!.]*")) if scored else ():
            if read_rows(task) is None:  # damaged or without: once the stage stands its certificate could not be issued
                fix = "restore it from a copy, or reject the stage"
                raise StateError("the score of the stage is gone", where=str(task / SCORE), fix=fix)
        return promote(run, stage, by=by)

    return decided(args, promoted)


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
        print(
            f"stage {record['stage']}: {record['decision']} by {record['by']}; go on with: mcit resume {shlex.quote(args.run)}"
        )
    return 0
