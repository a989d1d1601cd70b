"""What a command costs before it does its work: imports, ``mcit --help``, a plan, and the way to the first optimiser step.

    python scripts/bench/startup.py [--config tiny demo] [--repeat 5] [--json FILE]

Every measurement is a process of its own; parts take turns, so that other work on the machine falls on all. Shown are median,
smallest and largest, on the clock and as processor time (on a busy machine only the latter says something). ``plan`` is ``mcit
plan`` as a whole. ``imports`` is ``import torch, transformers, peft`` and nothing else, ``first step`` counts from their end,
in the same process, to the end of the first optimiser step of ``mcit run``, with the scoring of the base left out (``eval.base:
false``), as it lies between and is no start-up. One round before the measured ones fills the caches; what an earlier plan
found out about rows is among them. Last comes what is aimed at: a plan of the demo in 4 s, its first step in 3 s, and a plan of
tiny no slower than its first step, imports included in both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_Found = dict[tuple[str, str], dict[str, float]]
"""Seconds on the clock and of a core, by part and config."""


def first_step(config: str, runs: str) -> None:
    """Run until the first optimiser step has ended, print the time of the imports and the time since, and leave at once."""
    marks = [(time.perf_counter(), time.process_time())]
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    marks.append((time.perf_counter(), time.process_time()))
    from mcit.cli.main import entry
    from mcit.train import loop

    step = loop.run_step

    def stepped(*given: Any) -> None:
        step(*given)
        marks.append((time.perf_counter(), time.process_time()))
        print(
            json.dumps([[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(marks)]), flush=True
        )
        os._exit(0)

    loop.run_step = stepped  # type: ignore[assignment]
    sys.argv = ["mcit", "run", config, "--runs-dir", runs, "--set", "eval.base=false"]
    entry()


def measure(name: str, config: str) -> _Found:
    """One process."""
    commands = {"help": ["-m", "mcit", "--help"], "plan": ["-m", "mcit", "plan", config]}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mcit-bench-") as home:
        command = commands.get(name, [__file__, "--one", config, home])
        done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    if name == "first step":
        found = json.loads(done.stdout.splitlines()[-1])
        parts = (("imports", ""), (name, config))
        return {part: {"seconds": wall, "cpu_s": busy} for part, (wall, busy) in zip(parts, found, strict=True)}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {(name, config): {"seconds": time.perf_counter() - began, "cpu_s": busy}}


def aims(seconds: dict[tuple[str, str], float]) -> list[str]:
    """What is aimed at beside what was measured, from medians by part and config."""
    wanted = {("plan", "demo"): 4.0, ("first step", "demo"): 3.0}
    if ("first step", "tiny") in seconds:
        wanted["plan", "tiny"] = seconds["imports", ""] + seconds["first step", "tiny"]
    pairs = [(part, seconds[part], aim) for part, aim in wanted.items() if part in seconds]
    return [
        f"{name} of {config}: {got:.2f} s, aim {aim:.2f} s: {'met' if got <= aim else 'missed'}"
        for (name, config), got, aim in pairs
    ]


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["tiny", "demo"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("CONFIG", "RUNS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        first_step(*args.one)
    cases = [("help", ""), *((name, config) for config in args.config for name in ("plan", "first step"))]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(args.repeat + 1):
        for case in cases:
            for part, one in measure(*case).items():
                if turn:
                    found.setdefault(part, []).append(one)
    results: list[dict[str, Any]] = [
        {"part": name, "config": config, **{unit: spread([one[unit] for one in ones]) for unit in ("seconds", "cpu_s")}}
        for (name, config), ones in found.items()
    ]
    for each in results:
        shown = [
            f"{each[u]['median']:6.2f} ({each[u]['min']:.2f} to {each[u]['max']:.2f})" for u in ("seconds", "cpu_s")
        ]
        print(f"{each['part']:10} {each['config']:6} {shown[0]} s, {shown[1]} s of a core", flush=True)
    print(*aims({(each["part"], each["config"]): each["seconds"]["median"] for each in results}), sep="\n")
    if args.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        args.json.write_text(json.dumps({**about, "repeat": args.repeat, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
