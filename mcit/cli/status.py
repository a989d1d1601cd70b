"""``mcit status``: stages committed, step of the live one, last events. Reads files only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import print_json

if TYPE_CHECKING:
    from mcit.core.types import JsonDict
    from mcit.runs.run import Run

_LAST = 5


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("status", help="how far runs have come")
    parser.add_argument("run", metavar="RUN", nargs="?", help="folder of a run (default: every run in --runs-dir)")
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="status")


def run(args: argparse.Namespace) -> int:
    """Look and print."""
    from mcit.runs.run import find_runs, open_existing

    found = [open_existing(Path(args.run))] if args.run else find_runs(Path(args.runs_dir))
    states = [state(item) for item in found] if args.run else [_state_or_problem(item) for item in found]
    if args.json:
        print_json(states[0] if args.run else {"runs": states})
        return 0
    if not states:
        print(f"no runs in {args.runs_dir}")
    for item in states:
        show(item)
    return 0


def state(found: Run) -> JsonDict:
    """Where a run stands. Raises StateError when its plan cannot be read or a stage it shares is gone."""
    from mcit.runs.shared import shared_from

    stages = []
    for stage in found.plan()["stages"]:
        folder = stage["folder"]
        committed = found.is_committed(folder)
        live = None if committed else found.live_step(folder)
        shared = shared_from(found.layout, folder)
        entry = {"folder": folder, "steps": stage.get("steps"), "committed": committed, "live_step": live}
        stages.append({**entry, "shared_from": str(shared) if shared else None})
    return {
        "run": str(found.layout.root),
        "name": found.plan()["name"],
        "finished": all(stage["committed"] for stage in stages),
        "writer": found.lock.holder(),
        "stages": stages,
        "events": found.ledger.events()[-_LAST:],
    }


def _state_or_problem(found: Run) -> JsonDict:
    """One damaged run must not hide the others."""
    from mcit.core.errors import StateError

    try:
        return state(found)
    except StateError as error:
        return {"run": str(found.layout.root), "problem": str(error)}


def show(item: JsonDict) -> None:
    """One run in lines for people."""
    if "problem" in item:
        print(f"{item['run']}: damaged\n  {item['problem']}")
        return
    done = sum(stage["committed"] for stage in item["stages"])
    writer = item["writer"]
    running = f", written by process {writer['pid']} on {writer['host']}" if writer else ""
    print(f"{item['run']}: {done} of {len(item['stages'])} stages committed{running}")
    for stage in item["stages"]:
        print(f"  {stage['folder']}: {_words(stage)}")
    for event in item["events"]:
        rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("time", "event"))
        print(f"  {event.get('time', '')} {event['event']} {rest}".rstrip())


def _words(stage: JsonDict) -> str:
    if stage["committed"]:
        return f"committed, shared from {stage['shared_from']}" if stage["shared_from"] else "committed"
    if stage["live_step"] is None:
        return "not started"
    return f"started, checkpoint at step {stage['live_step']} of {stage['steps']}"
