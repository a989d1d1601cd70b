"""What a command costs before it does its work: imports, ``mcit --help``, a plan, and the way to the first optimiser step.

    python scripts/bench/startup.py [--config tiny demo] [--repeat 5] [--json FILE]

Every measurement is a process of its own; parts take turns, so that other work on the machine falls on all. Shown are median,
smallest and largest, on the clock and as processor time (on a busy machine only the latter says something). ``imports`` is
``import torch, transformers, peft`` and nothing else. ``plan`` is ``mcit plan`` as a whole, imports included. ``first step``
counts from the end of these imports to the end of the first optimiser step of ``mcit run``, with the scoring of the base left
out (``eval.base: false``), as it lies between and is no start-up. One round before the measured ones fills the caches.
"""

from __future__ import annotations

import argparse
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

_NAMES = ("imports", "help", "plan", "first step")


def first_step(config: str, runs: str) -> None:
    """Run until the first optimiser step has ended, print its time since the imports and leave at once."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    began, busy = time.perf_counter(), time.process_time()
    from mcit.cli.main import main as mcit
    from mcit.train import loop

    step = loop.run_step

    def stepped(*given: Any) -> None:
        step(*given)
        print(json.dumps({"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - busy}), flush=True)
        os._exit(0)

    loop.run_step = stepped  # type: ignore[assignment]
    sys.exit(mcit(["run", config, "--runs-dir", runs, "--set", "eval.base=false"]))


def measure(name: str, config: str) -> dict[str, float]:
    """One process: seconds on the clock and of a core."""
    commands = {
        "imports": ["-c", "import torch, transformers, peft"],
        "help": ["-m", "mcit", "--help"],
        "plan": ["-m", "mcit", "plan", config],
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mcit-bench-") as home:
        command = commands.get(name, [__file__, "--one", config, home])
        done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    if name == "first step":
        return dict(json.loads(done.stdout.splitlines()[-1]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu_s": busy}


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
    cases = [("imports", ""), ("help", ""), *((name, c) for c in args.config for name in _NAMES[2:])]
    found: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for turn in range(args.repeat + 1):
        for case in cases:
            one = measure(*case)
            if turn:
                found[case].append(one)
    results = [
        {"part": name, "config": config, **{unit: spread([one[unit] for one in ones]) for unit in ("seconds", "cpu_s")}}
        for (name, config), ones in found.items()
    ]
    for each in results:
        shown = [
            f"{each[u]['median']:6.2f} ({each[u]['min']:.2f} to {each[u]['max']:.2f})" for u in ("seconds", "cpu_s")
        ]
        print(f"{each['part']:10} {each['config']:6} {shown[0]} s, {shown[1]} s of a core", flush=True)
    if args.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        args.json.write_text(json.dumps({**about, "repeat": args.repeat, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
