"""What a probe costs at its default settings: a stage with it against the same stage without, step by step in turn.

    python scripts/bench/probes.py [--json FILE] [--base embedded] [--steps 200] [--rounds 5] [--only stability …]

Both sides are the second stage of a sequence (two tasks are measured), built on copies of the same model, and take their steps
in turn, so that other work on the machine falls on both; neither side always goes first. The seconds of a side are those of all
its steps, of the second one with everything its probe does, the measurements before the first and after the last step
included. A round's overhead is their ratio minus 1, a case's the median of its rounds, with the lowest and highest. In short
stages the two measurements that are always made pass the share (0.1) by themselves. Finished cases are in the file and are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mcit.core.files import write_json
from scripts.bench.methods import Case, build, stage, step

LWF: list[dict[str, Any]] = [{"use": "lwf"}]
CASES = {
    case.name: case
    for case in (
        Case("stability", stage([]), stage([]), 1.1, probes=[{"use": "stability"}]),
        Case("stability with lwf", stage(LWF), stage(LWF), 1.1, probes=[{"use": "stability"}]),
        Case("generation", stage([]), stage([]), 1.1, probes=[{"use": "generation"}]),
    )
}


class Record:
    """Lines of probes, in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def probe(self, line: dict[str, Any]) -> None:
        """One more."""
        self.lines.append(line)

    def probed(self) -> list[dict[str, Any]]:
        """None of an earlier start."""
        return []


def stages(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One round: overhead, seconds of both sides, and measurements made and left out."""
    with tempfile.TemporaryDirectory() as home:
        works = [build(case, side, args, Path(home) / str(side)) for side in (0, 1)]
        record, probes = Record(), works[1].probes
        for work in works:  # the first step of a process is slower
            step(work, 0)
        seconds = [0.0, probes.at(0, args.steps, record, trained=0.0)]
        trained = 0.0
        for number in range(1, args.steps + 1):
            for side in (0, 1) if number % 2 else (1, 0):
                took = step(works[side], number)
                seconds[side] += took
                if side:
                    trained += took
                    seconds[1] += probes.at(number, args.steps, record, trained=trained)
        for work in works:
            work.streams.close()
    made = sum("values" in line for line in record.lines)
    return {
        "overhead": seconds[1] / seconds[0] - 1,
        "probe_share": 1 - trained / seconds[1],
        "seconds": seconds,
        "made": made,
        "left_out": len(record.lines) - made,
    }


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """All rounds of a case."""
    began, rounds = time.monotonic(), []
    for number in range(args.rounds):
        rounds.append(stages(case, args))
        one = rounds[-1]
        told = f"{one['made']} measurements, {one['left_out']} left out"
        print(f"{case.name}, round {number + 1}: overhead {one['overhead']:.1%}, {told}", flush=True)
    overheads = [one["overhead"] for one in rounds]
    return {
        "overhead": statistics.median(overheads),
        "range": [min(overheads), max(overheads)],
        "rounds": rounds,
        "steps": args.steps,
        "load": round(os.getloadavg()[0], 1),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def main() -> int:
    """Measure what the file does not have yet, print, write; exit code 1 where a limit was not kept."""
    parser = argparse.ArgumentParser(description="overhead of probes at their default settings")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--base", default="embedded", help="model family: embedded or tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    args = parser.parse_args()
    args.warmup = 1
    found: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    from mcit.cli.common import start_torch

    start_torch()
    over = []
    for name in args.only or CASES:
        key = f"{name}, {args.base}, {args.steps} steps"
        if key not in found:
            found[key] = measure(CASES[name], args)
            if args.json:
                write_json(args.json, found)
        one, limit = found[key], CASES[name].limit or 0.0
        over += [name] if one["overhead"] > limit - 1 else []
        low, high = one["range"]
        held = "not held" if name in over else "held"
        print(f"{key}: overhead {one['overhead']:.1%} ({low:.1%} to {high:.1%}), limit {limit - 1:.0%} {held}")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
