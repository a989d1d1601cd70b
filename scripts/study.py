"""Two ways of training compared over seeds, or what a forget stage did over seeds, with intervals over seeds and rows.

    python scripts/study.py --a runs/demo-s0-* runs/demo-s1-* … --b runs/demo-asd-s0-* … [--json FILE]
    python scripts/study.py --forget runs/demo-forget-s0-* runs/demo-forget-s1-* … [--json FILE]

The first compares earlier tasks after the last stage: give the runs of both sides with the same seeds in the same order. The
second shows accuracy on what is forgotten before and after the stage and at the end, and what other tasks lost in it.
Intervals (95 %) resample seeds, and in each seed test rows (the same rows for both sides, so that the difference is of
pairs), 2,000 times.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mcit.core.files import read_json
from mcit.core.lookup import class_of
from mcit.evals.predictions import read_predictions
from mcit.evals.scorers.base import Scorer
from mcit.evals.style import format_valid

RESAMPLES = 2000


def cell(run: Path, after: int, task: str) -> dict[str, list[float]]:
    """Per row in percent: right (strict), and of the task's own form."""
    folder = run / "evals" / f"after-{after:02d}" / task
    score = read_json(folder / "score.json")
    scorer: Any = class_of("evals.scorers", score["scorer"]["name"], base=Scorer)()
    rows = read_predictions(folder)
    golds = [{**row["gold"], "question": row["question"]} for row in rows]
    found = {
        "accuracy": [100 * scorer.strict(row["text"], gold) for row, gold in zip(rows, golds, strict=True)],
        "validity": [
            100 * float(format_valid(row["text"], score["style"], gold)) for row, gold in zip(rows, golds, strict=True)
        ],
    }
    for name, stored in (("accuracy", score["strict"]["accuracy"]), ("validity", score["format_validity"])):
        if abs(float(np.mean(found[name])) - stored) > 1e-6:
            raise SystemExit(
                f"{folder}: {name} is {np.mean(found[name]):.3f} from the answers, {stored:.3f} in score.json"
            )
    return found


def cells(runs: list[Path], kind: str) -> dict[str, np.ndarray]:
    """Tasks trained before the last stage, after the last stage: (seeds, rows) each."""
    out: dict[str, list[list[float]]] = {}
    for run in runs:
        plan = read_json(run / "plan.json")
        last = len(plan["stages"])
        for task in plan["stages"][-1]["tasks"]:
            out.setdefault(task, []).append(cell(run, last, task)[kind])
        for stage in plan["stages"][:-1]:
            for task in stage["tasks"]:
                out.setdefault(task, []).append(cell(run, last, task)[kind])
    return {task: np.array(values) for task, values in out.items()}


def intervals(a: list[np.ndarray], b: list[np.ndarray]) -> dict[str, list[float]]:
    """Mean and central 95 % of the mean over tasks of each side and of b - a; tasks are not resampled."""
    draw = np.random.RandomState(0)
    seeds = len(a[0])
    means: dict[str, list[float]] = {"a": [], "b": [], "difference": []}
    for _ in range(RESAMPLES):
        sides = [0.0, 0.0]
        picked = draw.randint(0, seeds, seeds)
        for task_a, task_b in zip(a, b, strict=True):
            rows = draw.randint(0, task_a.shape[1], (seeds, task_a.shape[1]))
            for side, task in enumerate((task_a, task_b)):
                sides[side] += float(np.mean([task[s][r] for s, r in zip(picked, rows, strict=True)])) / len(a)
        means["a"].append(sides[0])
        means["b"].append(sides[1])
        means["difference"].append(sides[1] - sides[0])
    point = {"a": float(np.mean([t.mean() for t in a])), "b": float(np.mean([t.mean() for t in b]))}
    point["difference"] = point["b"] - point["a"]
    return {k: [point[k], *map(float, np.percentile(v, [2.5, 97.5]))] for k, v in means.items()}


def forgetting(runs: list[Path]) -> dict[str, Any]:
    """By measure: mean, interval, and the value of each seed."""
    found: dict[str, list[list[float]]] = {}
    for run in runs:
        plan = read_json(run / "plan.json")
        (stage,) = [s for s in plan["stages"] if s.get("forget")]
        k, last = stage["index"], len(plan["stages"])
        for task in stage["forget"]:
            for when, after in (("before", k - 1), ("after", k), ("at the end", last)):
                found.setdefault(f"{task}, {when}", []).append(cell(run, after, task)["accuracy"])
        others = {t for s in plan["stages"][:k] for t in s["tasks"]} - set(stage["forget"])
        for task in sorted(others):
            before, after = (cell(run, step, task)["accuracy"] for step in (k - 1, k))
            found.setdefault(f"{task}, points lost", []).append([b - a for b, a in zip(before, after, strict=True)])
    return {
        name: {**intervals([np.array(rows)], [np.array(rows)]), "by_seed": [float(np.mean(r)) for r in rows]}
        for name, rows in found.items()
    }


def show_forgetting(runs: list[Path], file: Path | None) -> int:
    """Print and write."""
    result = forgetting(runs)
    print(f"percent: mean [95 % interval over {len(runs)} seeds and rows]; by seed")
    for name, value in result.items():
        mean, low, high = value["a"]
        print(f"  {name:<32} {mean:6.1f} [{low:6.1f}, {high:6.1f}]   {[round(v, 1) for v in value['by_seed']]}")
    if file:
        kept = {
            name: {"mean": v["a"][0], "interval": v["a"][1:], "by_seed": v["by_seed"]} for name, v in result.items()
        }
        file.write_text(json.dumps({"runs": [str(r) for r in runs], "percent": kept}, indent=1) + "\n")
    return 0


def main() -> int:
    """Read, resample, print."""
    parser = argparse.ArgumentParser(
        description="compare two sets of runs over seeds, or show a forget stage over seeds"
    )
    parser.add_argument("--a", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--b", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--forget", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.forget and not (args.a or args.b):
        return show_forgetting(args.forget, args.json)
    if args.forget or not args.a or not args.b or len(args.a) != len(args.b):
        parser.error("give --forget alone, or as many runs for --a as for --b")
    result: dict[str, Any] = {"a": [str(r) for r in args.a], "b": [str(r) for r in args.b]}
    for kind in ("validity", "accuracy"):
        a, b = cells(args.a, kind), cells(args.b, kind)
        last = set(read_json(args.a[0] / "plan.json")["stages"][-1]["tasks"])
        groups = {"earlier tasks": [t for t in a if t not in last], **{t: [t] for t in a}}
        print(f"{kind} after the last stage, percent: mean [95 % interval over {len(args.a)} seeds and rows]; by seed")
        for name, tasks in groups.items():
            found = intervals([a[t] for t in tasks], [b[t] for t in tasks])
            by_seed = [
                [round(float(np.mean([side[t][s].mean() for t in tasks])), 1) for s in range(len(args.a))]
                for side in (a, b)
            ]
            result.setdefault(kind, {})[name] = {**found, "by_seed": by_seed}
            shown = "   ".join(f"{k} {v[0]:6.1f} [{v[1]:6.1f}, {v[2]:6.1f}]" for k, v in found.items())
            print(f"  {name:<14} {shown}   a {by_seed[0]}  b {by_seed[1]}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
