"""Rows at scale: what the first optimiser step of a stage takes, and memory after some more, for few rows and for many.

    python scripts/bench/scaling.py [--rows 1000 665000] [--steps 20] [--repeat 1] [--json FILE]

Every measurement is a process of its own. It plans a run of the tiny model on made-up rows (scripts/bench/rows.py: 700 bytes
each, 200 pictures), whose data folder lies built already, and trains on it with the defaults of `engine`: rows are encoded
ahead, what was encoded is kept within its bound. Shown are seconds from the imports to the end of the first step on the clock
and of a core, the resident set then and after all steps, and its peak. What is aimed at: memory within 100 MB of that of the
fewest rows, the first step within 5 s of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.rows import write_set

MEMORY_MB, SECONDS = 100, 5


def resident() -> float:
    """Megabytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def one(recipe: str, steps: int) -> dict[str, float]:
    """Plan, build the stage, take steps, in this process."""
    from mcit.cli.common import start_torch

    start_torch()
    import torch
    import transformers  # noqa: F401

    from mcit.engine.peak import peak_bytes

    torch.set_num_threads(1)
    began, busy = time.perf_counter(), time.process_time()
    step = _stepping(recipe, steps)
    step()
    first = {"first_step_s": time.perf_counter() - began, "first_step_cpu_s": time.process_time() - busy}
    first["first_step_mb"] = resident()
    for _ in range(steps - 1):
        step()
    return {**first, "mb": resident(), "peak_mb": peak_bytes(torch.device("cpu")) / 1e6}


def _stepping(recipe: str, steps: int) -> Callable[[], None]:
    """What takes the next step of a stage."""
    from mcit.models.basefiles import base_digest
    from mcit.models.lineage import Lineage
    from mcit.models.load import load_base
    from mcit.plan.plan import make_plan, parse_run
    from mcit.plan.preflight import make_encoder
    from mcit.train.loop import run_step
    from mcit.train.stage import Material, build_stage

    config, problems = parse_run(
        {
            "name": "bench", "base": {"family": "tiny", "dtype": "fp32"}, "eval": {"tasks": "none"},
            "stages": [{"recipe": recipe, "max_steps": steps}],
        }
    )  # fmt: skip
    if config is None or problems:
        raise SystemExit("\n".join(map(str, problems)))
    plan = make_plan(config)
    lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
    material = Material(plan, load_base(plan.model_path, dtype="fp32"), make_encoder(plan), lineage)
    work, numbers = build_stage(plan.stages[0], material, inherited={}), itertools.count()

    def step() -> None:
        work.ctx.at(next(numbers))
        run_step(work, work.streams.next_step())

    return step


def measure(recipe: Path, steps: int, repeat: int, home: Path) -> dict[str, float]:
    """Medians of processes, the first of which builds the data folder and does not count."""
    environment = {**os.environ, "MCIT_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", str(recipe), "--steps", str(steps)]
    found = []
    for _ in range(repeat + 1):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(each[key] for each in found[1:]) for key in found[0]}


def main() -> int:
    """Measure, print, write; 1 where more rows take more than they may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 665_000])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.steps)))
        return 0
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="mcit-bench-") as name:
        home = Path(name)
        for rows in sorted(args.rows):
            recipe = write_set(home / str(rows), rows, layout="lines")
            results.append({"rows": rows, **measure(recipe, args.steps, args.repeat, home)})
            got = results[-1]
            print(
                f"{rows:>9,} rows  first step {got['first_step_s']:6.1f} s ({got['first_step_cpu_s']:.1f} s of a core), "
                f"{got['first_step_mb']:.0f} MB; after {args.steps} steps {got['mb']:.0f} MB, peak {got['peak_mb']:.0f} MB",
                flush=True,
            )
    if args.json:
        machine = {"machine": platform.platform(), "steps": args.steps, "repeats": args.repeat}
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    few = results[0]
    over = [r for r in results if r["mb"] > few["mb"] + MEMORY_MB or r["first_step_s"] > few["first_step_s"] + SECONDS]
    for each in over:
        print(f"{each['rows']:,.0f} rows take more than {few['rows']:,.0f} and what they may", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
