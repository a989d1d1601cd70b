"""Every method against sequential training on one config: what it learns, keeps and costs, as a table.

    python scripts/methods_table.py --home FOLDER [--config demo] [--only ewc lwf …] [--set KEY=VALUE …] [--docs PAGE]

One `mcit run` per method, with the method's shipped settings in every stage and adapter settings that meet its claims; what is
done in FOLDER is not run again, and a run that was killed goes on, so the same command resumes. A method is compared with
sequential training under the same ``adapter.carry``. Per run: mean right after learning (MFT), mean at the end (MFN),
forgetting, the last row of the matrix, and as a ratio the processor time of the whole command, which other programs move far
less than the clock; a run that was killed has none. What a step costs is measured by ``scripts/bench/methods.py``.
FOLDER/table.json has every matrix; ``--docs`` writes the table between its marks in a page.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.bench.methods import suited
from scripts.pages import write_between

MARKS = ("<!-- methods on the demo: written by scripts/methods_table.py -->", "<!-- methods on the demo: end -->")
NEEDS: dict[str, list[dict[str, Any]]] = {"frequency_replay": [{"visits": {"demo/kind": 3}}]}
"""Settings without which a method has nothing to do."""
LEFT_OUT = frozenset({"canary"})
"""Not for retention: it plants rows to be found again."""


def sides() -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Carry and methods of each run by name; sequential training once per carry."""
    out: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for name, adapter in suited().items():
        if name in LEFT_OUT:
            continue
        carry = adapter["carry"] if adapter["kind"] != "none" else "none"
        out.setdefault(f"sequential-{carry}", (carry, []))
        extra = NEEDS.get(name, [{}])[0]
        out[name] = carry, [{"use": name, **extra}]
    return dict(sorted(out.items(), key=lambda one: not one[0].startswith("sequential")))


def command(name: str, carry: str, methods: list[dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """The run of one side."""
    settings = [f"name=table-{name}", f"defaults.methods={json.dumps(methods)}"]
    if carry == "none":
        settings.append("defaults.adapter={kind: none, also_train: [projector]}")
    else:
        settings.append(f"defaults.adapter.carry={carry}")
    if carry == "pool":
        settings += ["defaults.adapter.also_train=[]", "router={use: oracle}"]
    views = [method for method in methods if method["use"] == "view_batch"]
    if views:  # every view takes an epoch
        settings.append("defaults.epochs=4")
    given = [part for one in (*settings, *args.set) for part in ("--set", one)]
    return [sys.executable, "-m", "mcit", "run", args.config, "--runs-dir", str(args.home / "runs"), *given]


def finished(name: str, args: argparse.Namespace) -> Path | None:
    """The run's folder if its report is there."""
    found = [
        path for path in (args.home / "runs").glob(f"table-{name}-*") if (path / "report" / "report.json").is_file()
    ]
    return found[0] if found else None


def run_once(name: str, argv: list[str], home: Path) -> int:
    """Call a run, its output in ``NAME.log``, its processor time in ``NAME.calls``; returns the exit code."""
    calls = home / f"{name}.calls"
    with open(calls, "a") as file:
        file.write("begun\n")
    with open(home / f"{name}.log", "ab") as log:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = subprocess.run(argv, stdout=log, stderr=log).returncode
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(calls, "a") as file:
        file.write(f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.1f}\n")
    return code


def processor_seconds(calls: Path) -> float | None:
    """Of all calls of a run; None if one of them was killed with this script."""
    lines = calls.read_text().split() if calls.is_file() else []
    ended = [float(line) for line in lines if line != "begun"]
    return sum(ended) if ended and 2 * len(ended) == len(lines) else None


def entry(run: Path, calls: Path) -> dict[str, Any]:
    """What the table holds of a run."""
    from mcit.report.tables import full_report

    report = full_report(run)
    metrics = {key: report["metrics"][key] for key in ("mft", "mfn", "forgetting", "bwt_earlier")}
    out = {"run": run.name, "tasks": report["tasks"], "matrix": report["matrix"], "metrics": metrics}
    return {**out, "processor_seconds": processor_seconds(calls)}


def table(found: dict[str, dict[str, Any]], seed: str) -> str:
    """Markdown, sequential training first."""
    head = ["method", "carry", "MFT", "MFN", "forgetting", "last row", "processor time, ratio"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, one in found.items():
        base = found.get(f"sequential-{one['carry']}")
        cost = ratio(one["processor_seconds"], base["processor_seconds"] if base else None)
        numbers = [shown(one["metrics"][key]) for key in ("mft", "mfn", "forgetting")]
        last = ", ".join(shown(cell) for cell in one["matrix"][-1])
        lines.append(f"| `{name}` | {one['carry']} | {' | '.join(numbers)} | {last} | {cost} |")
    tasks = ", ".join(next(iter(found.values()))["tasks"])
    about = f"{len(found)} runs, {seed}, {os.cpu_count()}-core CPU machine; accuracy in percent; tasks {tasks}."
    return "\n".join([about, "", *lines])


def ratio(value: float | None, base: float | None) -> str:
    """Two decimals; a dash where one was not measured."""
    return f"{value / base:.2f}" if value is not None and base else "–"


def shown(value: float | None) -> str:
    """One decimal; a dash where nothing was measured."""
    return "–" if value is None else f"{value:.1f}"


def main() -> int:
    """Run what is missing, collect, write."""
    parser = argparse.ArgumentParser(description="every method against sequential training")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="run nothing, write what is finished into a page")
    args = parser.parse_args()
    args.home.mkdir(parents=True, exist_ok=True)
    found, failed = {}, []
    for name, (carry, methods) in sides().items():
        if args.only and name not in args.only and not name.startswith("sequential"):
            continue
        if finished(name, args) is None and not args.docs:
            print(f"{name} …", flush=True)
            if run_once(name, command(name, carry, methods, args), args.home):
                failed.append(name)
                print(f"{name}: failed, see {args.home / name}.log", flush=True)
                continue
        run = finished(name, args)
        if run is not None:
            found[name] = {"carry": carry, **entry(run, args.home / f"{name}.calls")}
            (args.home / "table.json").write_text(json.dumps(found, indent=1) + "\n")
    text = table(found, "seed 0" if not args.set else ", ".join(args.set))
    if args.docs:
        write_between(args.docs, MARKS, text)
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
