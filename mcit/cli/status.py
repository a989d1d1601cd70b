"""``mcit status``: stages committed, step of the live one, last events; with --watch again and again. Reads files only."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import print_json
from mcit.core.errors import ConfigError

if TYPE_CHECKING:
    from mcit.core.types import JsonDict
    from mcit.runs.run import Run

_LAST = 5
_ALIKE = 6
"""Stages in a row of one state that are shown one by one."""


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("status", help="how far runs have come")
    parser.add_argument("run", metavar="RUN", nargs="?", help="folder of a run (default: every run in --runs-dir)")
    parser.add_argument("--runs-dir", default="runs", help="folder of run directories (default: runs)")
    parser.add_argument("--watch", action="store_true", help="look every two seconds until all is done or Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="status")


def run(args: argparse.Namespace) -> int:
    """Look and print."""
    from mcit.runs.run import open_existing

    if args.watch and args.json:
        raise ConfigError("goes without --json", where="--watch", fix="leave one of them out")
    if args.run:
        open_existing(Path(args.run))
    states = _look(args)
    if args.watch:
        watch(lambda: _look(args), none=f"no runs in {args.runs_dir}")
    elif args.json:
        print_json(states[0] if args.run else {"runs": states})
    else:
        print("\n".join(_text(states, none=f"no runs in {args.runs_dir}")))
    return 0


def _look(args: argparse.Namespace) -> list[JsonDict]:
    from mcit.runs.run import Run, find_runs

    if args.run:
        return [state(Run(Path(args.run)))]
    return [_state_or_problem(found) for found in find_runs(Path(args.runs_dir))]


def watch(
    look: Callable[[], list[JsonDict]], *, none: str, every_s: float = 2.0, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Show the state of runs until all are finished or Ctrl-C: in place on a terminal, else each time it has changed."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    shown: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        display = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
        while True:
            states = look()
            lines = _text(states, none=none)
            if display:
                display.update(Text("\n".join(lines)), refresh=True)
            elif lines != shown:
                print("\n".join(lines), flush=True)
            shown = lines
            if states and all(item.get("finished") for item in states):
                return
            sleep(every_s)


def state(found: Run) -> JsonDict:
    """Where a run stands. Raises StateError when its plan cannot be read or a stage it shares is gone."""
    from mcit.report.profile import profile_of
    from mcit.runs.gates import read_gate
    from mcit.runs.shared import shared_from

    stages = []
    for stage in found.plan()["stages"]:
        folder = stage["folder"]
        committed = found.is_committed(folder)
        live = None if committed else found.live_step(folder)
        shared = shared_from(found.layout, folder)
        gate = read_gate(found.layout, folder)
        entry = {"folder": folder, "steps": stage.get("steps"), "committed": committed, "live_step": live}
        judged = {"gate": {key: gate[key] for key in ("verdict", "decision", "by")}} if gate else {}
        stages.append({**entry, "shared_from": str(shared) if shared else None, **judged})
    return {
        "run": str(found.layout.root),
        "name": found.plan()["name"],
        "finished": found.finished(),
        "writer": found.lock.holder(),
        "stages": stages,
        "profile": profile_of(found.layout.root),
        "events": found.ledger.events()[-_LAST:],
    }


def _state_or_problem(found: Run) -> JsonDict:
    """One damaged run must not hide the others."""
    from mcit.core.errors import StateError

    try:
        return state(found)
    except StateError as error:
        return {"run": str(found.layout.root), "problem": str(error)}


def _text(states: list[JsonDict], *, none: str) -> list[str]:
    """All runs in lines for people, none wider than the terminal."""
    width = shutil.get_terminal_size((10_000, 24)).columns  # a file or a pipe gets whole lines
    lines = [line for item in states for line in _lines(item)] or [none]
    return [part for line in lines for part in _wrapped(line, width)]


def _wrapped(line: str, width: int) -> list[str]:
    """Broken between words; a path that is wider stays whole, to be copied."""
    indent = " " * (len(line) - len(line.lstrip()))
    given: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "drop_whitespace": True}
    return textwrap.wrap(line.strip(), width, initial_indent=indent, subsequent_indent=indent + "  ", **given) or [""]


def _lines(item: JsonDict) -> list[str]:
    """One run."""
    if "problem" in item:
        return [f"{item['run']}: damaged", f"  {item['problem']}"]
    done = sum(stage["committed"] for stage in item["stages"])
    writer = item["writer"]
    running = f", written by process {writer['pid']} on {writer['host']}" if writer else ""
    lines = [f"{item['run']}: {done} of {len(item['stages'])} stages committed{running}"]
    for words, group in itertools.groupby(item["stages"], key=_words):
        alike = list(group)
        if len(alike) > _ALIKE:
            alike = [{"folder": f"{alike[0]['folder']} … {alike[-1]['folder']} ({len(alike)} stages)"}]
        lines += [f"  {stage['folder']}: {words}" for stage in alike]
    if item.get("profile"):
        from mcit.report.profile import line

        lines.append(f"  profile: {line(item['profile'])}")
    return lines + [f"  {_event(event)}" for event in item["events"]]


def _event(event: JsonDict) -> str:
    """A line of the ledger: when in UTC, what, and its values; of checksums the beginning."""
    from mcit.runs.identity import short

    rest = [f"{key}={_value(value, short)}" for key, value in event.items() if key not in ("time", "event", "previous")]
    when = event.get("time", "").replace("T", " ").replace("+00:00", " UTC")
    return " ".join([when, event["event"].replace("_", " "), *rest]).strip()


def _value(value: Any, short: Callable[[Any], str]) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else short(value)


def _words(stage: JsonDict) -> str:
    if stage["committed"]:
        return f"committed, shared from {stage['shared_from']}" if stage["shared_from"] else "committed"
    gate = stage.get("gate", {})
    if gate.get("decision") == "rejected":
        return f"rejected by {gate['by']}, kept aside"
    if gate.get("decision") == "aside":
        return f"set aside by its gate ({gate['verdict']}): promote or reject it"
    if stage["live_step"] is None:
        return "not started"
    return f"started, checkpoint at step {stage['live_step']} of {stage['steps']}"
