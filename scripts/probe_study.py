"""Studies of what probes measure: the stability gap over methods and seeds, and few-shot memory over splits and seeds.

    python scripts/probe_study.py gap --seeds 0 1 2 --methods none replay lwf ewc --runs-dir runs/gap --json gap.json
    python scripts/probe_study.py memory --seeds 0 1 2 --splits sentences strings --runs-dir runs/memory --json memory.json

Both start `mcit run` once per setting and seed, one after the other, and go on where they were stopped: what is finished is not
run again. The gap study measures every step for the first 30 steps of each stage. Per method: drop (accuracy of earlier tasks
before the first update minus the lowest one after it) and recovery (the last one minus the lowest one), tokens matched,
means over tasks and seeds, 95 % bootstrap intervals over pairs of seed and task. Exit code 1 where a run failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mcit.evals.inference import wilson
from mcit.report.probes import read_probes
from mcit.runs.run import find_runs

PROBE = "[{use: stability, every: 1, dense: 30, later: 10, rows: 32, answers: 0, norms: 30, share: null}]"
RESAMPLES = 2000


def started(config: str, name: str, overrides: Sequence[str], runs_dir: Path) -> bool:
    """Run a config under a name, or continue it; whether it ended well."""
    given = [part for setting in (f"name={name}", *overrides) for part in ("--set", setting)]
    command = [sys.executable, "-m", "mcit", "run", config, "--runs-dir", str(runs_dir), *given]
    print(" ".join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def probes_of(runs_dir: Path, name: str) -> dict[str, Any]:
    """What the probes of the run of this name measured."""
    (run,) = [r for r in find_runs(runs_dir) if r.plan()["name"] == name]
    return read_probes(run.layout.root)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval, and how many values it is of."""
    data, draw = np.asarray(values, dtype=float), np.random.RandomState(0)
    means = data[draw.randint(0, len(data), (RESAMPLES, len(data)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(data.mean()), "interval": [float(low), float(high)], "n": len(data)}


def gap_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over the runs of one method: drop, recovery and step of the minimum, metrics of each run, and overhead."""
    gaps = [gap for one in found for gap in one["stability"]["gaps"]]
    out: dict[str, Any] = {key: summary([gap[key] for gap in gaps]) for key in ("drop", "recovery", "step")}
    out["metrics"] = [one["stability"]["metrics"] for one in found]
    out["gaps"] = [one["stability"]["gaps"] for one in found]
    out["share_of_step_time"] = [[s["share"] for s in one["shares"] if s["probe"] == "stability"] for one in found]
    return out


def memory_of(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recognition and exact recall pooled over the runs of one split, by exposures and steps since."""
    pooled: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in found:
        for line in one["lines"]["memory"]:
            if line["step"] == 0 and line["stage"] > 1:  # the end of the stage before, once more
                continue
            for entry in line["values"].values():
                pooled.setdefault((entry["exposures"], entry["since"]), []).append(entry)
    out = []
    for (exposures, since), entries in sorted(pooled.items()):
        rows = sum(entry["rows"] for entry in entries)
        line = {"exposures": exposures, "since": since, "rows": rows}
        for key in ("recognised", "exact"):
            hits = sum(entry[key] for entry in entries)
            line[key] = {"share": hits / rows, "interval": wilson(hits, rows)}
        for key in ("rouge_l", "full_rouge_1"):
            line[key] = sum(entry[key] for entry in entries) / len(entries)
        out.append(line)
    return out


def main() -> int:
    """Run what is missing, put together what is there, write it."""
    parser = argparse.ArgumentParser(description="stability gap or few-shot memory over seeds")
    parser.add_argument("study", choices=("gap", "memory"))
    parser.add_argument("--config", help="name or path (default: demo, memory)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--methods", nargs="+", default=["none", "replay", "lwf", "ewc"], help="none is sequential tuning"
    )
    parser.add_argument("--splits", nargs="+", default=["sentences"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    config = args.config or {"gap": "demo", "memory": "memory"}[args.study]
    result: dict[str, Any] = {}
    failed = False
    for kind in args.methods if args.study == "gap" else args.splits:
        found = []
        for seed in args.seeds:
            name = f"{args.study}-{kind}-s{seed}"
            if args.study == "gap":
                methods = "[]" if kind == "none" else f"[{{use: {kind}}}]"
                own = [f"probes={PROBE}", f"defaults.methods={methods}"]
            else:
                own = [f"stages.0.recipe=memory/{kind}"]
            if started(config, name, [f"seed={seed}", *own, *args.set], args.runs_dir):
                found.append(probes_of(args.runs_dir, name))
            else:
                failed = True
        if found:
            result[kind] = gap_of(found) if args.study == "gap" else memory_of(found)
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
