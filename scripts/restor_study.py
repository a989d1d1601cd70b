"""Does unlearning false answers bring the true ones back? RESTOR on the embedded model, per unlearning method, with intervals.

    python scripts/restor_study.py --home FOLDER [--seeds 0 1 2] [--only npo ga …] [--results DIR] [--docs PAGE]

Per method and seed one run of ``configs/demo-restor.yaml`` with that method in its forget stage. The control of a seed lends
the others its first two stages and must be finished when they begin; apart from that each may be a process of its own. What was
measured of a side is one small file in DIR (FOLDER/restor), to be kept without the runs; what is there is not done again. A
killed run goes on. ``--docs`` runs nothing and writes the table of what is finished between its marks in a page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mcit.core.errors import McitError
from mcit.core.files import write_json
from scripts.forget_study import slug, spread, write_between

MARKS = ("<!-- restor on the demo: written by scripts/restor_study.py -->", "<!-- restor on the demo: end -->")
CONFIG, TASK, REST = "demo-restor", "naming-true", "naming-rest"
LEARN, CORRUPT, FORGET, REPAIR = 1, 2, 3, 4
FOLDER = "03-forget"
SIDES: dict[str, list[dict[str, Any]]] = {
    "control": [{"use": "bounded_forget", "beta": 0.0}],
    "npo": [{"use": "npo"}],
    "npo + retain_kl": [{"use": "npo"}, {"use": "retain_kl"}],
    "ga": [{"use": "ga"}],
    "grad_diff": [{"use": "grad_diff"}],
    "kl_min": [{"use": "kl_min"}],
    "bounded_forget": [{"use": "bounded_forget"}],
    "idk_dpo": [{"use": "idk_dpo"}],
    "rmu": [{"use": "rmu"}],
    "undial": [{"use": "undial"}],
}
"""Methods of the forget stage, by name. The control, the first, has the stage's steps on retained rows and forgets nothing."""


def main() -> int:
    """Do what is missing, collect, write."""
    parser = argparse.ArgumentParser(description="RESTOR: recovery of overwritten knowledge per unlearning method")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", choices=list(SIDES), metavar="METHOD", help=", ".join(SIDES))
    parser.add_argument("--results", type=Path, metavar="DIR", help="one file per finished side (default: HOME/restor)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="run nothing, write what is finished into a page")
    args = parser.parse_args()
    results = args.results or args.home / "restor"
    for folder in (args.home, results):
        folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for seed, name in [(s, n) for s in args.seeds for n in SIDES if n in (args.only or SIDES)] if not args.docs else []:
        if not result_file(results, name, seed).is_file():
            print(f"{name}, seed {seed} …", flush=True)
            if name != "control" and not result_file(results, "control", seed).is_file():
                fix = f"run the control of this seed first (--only control --seeds {seed})"
                raise SystemExit(f"{name}, seed {seed}: {fix}")
            try:
                write_json(result_file(results, name, seed), one(args.home, name, seed))
            except McitError as error:
                failed = True
                print(f"{name}, seed {seed}: {error}", flush=True)
                if error.exit_code == 75:
                    return 75
    done = {name: [result_file(results, name, s) for s in args.seeds] for name in SIDES}
    found = {name: [json.loads(p.read_text()) for p in paths if p.is_file()] for name, paths in done.items()}
    text = table({name: entries for name, entries in found.items() if entries})
    if args.docs:
        write_between(args.docs, MARKS, text)
    print(text)
    return int(failed)


def result_file(results: Path, name: str, seed: int) -> Path:
    """Where what was measured of a side lies."""
    return results / f"{slug(name, seed)}.json"


def overrides(name: str, seed: int) -> list[str]:
    """Settings of a side's run."""
    return [f"name=restor-{slug(name, seed)}", f"seed={seed}", f"stages.forget.methods={json.dumps(SIDES[name])}"]


def one(home: Path, name: str, seed: int) -> dict[str, Any]:
    """Run one side, or go on with it: its result. Its learned stages are the control's, where that run is in `home`.

    Raises McitError for what fails, SystemExit for a command that ended badly.
    """
    from mcit.cli.main import main as mcit

    runs, begun, control = home / "restor-runs", run_of(home, name, seed), run_of(home, "control", seed)
    new = ["run", CONFIG, "--runs-dir", str(runs), *(part for o in overrides(name, seed) for part in ("--set", o))]
    if control and name != "control":
        new += ["--from", str(control), "--stage", str(CORRUPT)]
    with open(home / f"{slug(name, seed)}.log", "a") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            code = mcit(["resume", str(begun)] if begun else new)
    if code:
        raise SystemExit(code)
    run = run_of(home, name, seed)
    assert run is not None
    return entry(run)


def run_of(home: Path, name: str, seed: int) -> Path | None:
    """The side's run, if it was begun."""
    return next((p.parent for p in (home / "restor-runs").glob(f"restor-{slug(name, seed)}-*/manifest.json")), None)


def entry(run: Path) -> dict[str, Any]:
    """What the table needs of a run: per test row of the true answers 0 or 1 after each stage, what is left of false ones."""
    from mcit.evals.kit import read_kit
    from mcit.evals.score import read_rows, read_score
    from mcit.runs.layout import RunLayout

    layout = RunLayout(run)
    stages = range(LEARN, REPAIR + 1)
    rows = {after: read_rows(layout.evals(after) / TASK) or {} for after in stages}
    rest = {after: read_score(layout.evals(after) / REST) or {} for after in stages}
    kits = {after: read_kit(layout.kit(after, FOLDER)) or {} for after in stages if after >= CORRUPT}
    return {
        "ids": rows[LEARN]["id"],
        "true": {str(after): found["strict"] for after, found in rows.items()},
        "rest": {str(after): found["strict"]["accuracy"] for after, found in rest.items()},
        "residual": {str(after): found["forget"]["residual_corruption"] for after, found in kits.items()},
        "said": {str(after): 100 * found["forget"]["attack_success"] for after, found in kits.items()},
        "run": run.name,
    }


HEAD = (
    "method", "seeds", "clean", "corrupted", "after forgetting", "recovery", "after repair", "recovery",
    "false answer said: corrupted / forgotten / repaired", "false answer likelier", "other names",
)  # fmt: skip


def recovered(entries: list[dict[str, Any]], after: int) -> str:
    """Recovery with its 95 % interval over questions, whose scores are means over seeds; a dash where nothing was corrupted."""
    from mcit.report.recovery import shown, with_interval

    scores = [[e["true"][str(stage)] for e in entries] for stage in (LEARN, CORRUPT, after)]
    clean, corrupted, now = ([sum(v) / len(v) for v in zip(*seeds, strict=True)] for seeds in scores)
    return shown(with_interval(clean, corrupted, now, ids=entries[0]["ids"]))


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means over seeds with their range, recovery with its interval over questions."""
    if not found:
        return "Nothing is finished yet."
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name, entries in found.items():

        def true(after: int, entries: list[dict[str, Any]] = entries) -> str:
            return spread([100 * sum(e["true"][str(after)]) / len(e["ids"]) for e in entries])

        def several(key: str, digits: int, entries: list[dict[str, Any]] = entries) -> str:
            return " / ".join(spread([e[key][str(k)] for e in entries], digits) for k in (CORRUPT, FORGET, REPAIR))

        cells = [f"`{name}`", str(len(entries)), true(LEARN), true(CORRUPT), true(FORGET), recovered(entries, FORGET)]
        cells += [true(REPAIR), recovered(entries, REPAIR)]
        cells += [several("said", 0), several("residual", 2), several("rest", 0)]
        lines.append(f"| {' | '.join(cells)} |")
    about = (
        f"{sum(map(len, found.values()))} runs; accuracies and answers said in percent, mean over seeds (lowest to highest); "
        "recovery with its 95 % bootstrap interval over questions; the last three columns after stages 2, 3 and 4."
    )
    return "\n".join([about, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
