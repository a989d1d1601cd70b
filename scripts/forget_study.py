"""Unlearning methods on one sequence: what each forgets, loses and costs, and whether it comes back, as a table.

    python scripts/forget_study.py --home FOLDER [--seeds 0 1 2] [--only npo ssd …] [--results DIR] [--docs docs/forgetting.md]

Per method and seed one run of ``configs/demo-unlearn.yaml`` with that method in its forget stage. The two stages before it are
trained once per seed and shared; after it the forgetting kit measures, and rows are learned again on a copy (20, 40, 60), for
the first method on the base as well. What was measured of a side is one small file in DIR (FOLDER/results), which may be kept
without the runs: what is there is not done again. A run that was killed goes on, so the same command resumes. Processor seconds
are those of the forget stage (its passes and steps; none where it was interrupted); those of the two learned stages are what
retraining takes. A method that ends its stage with an error of its own (`ssd` finds no alpha) has its seconds and that error.

``--docs`` runs nothing and writes the table of what is finished between its marks in a page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mcit.core.errors import McitError, TrainingError
from mcit.core.files import write_json
from mcit.core.types import Progress
from scripts.pages import write_between

MARKS = ("<!-- unlearning on the demo: written by scripts/forget_study.py -->", "<!-- unlearning on the demo: end -->")
CONFIG, FORGET, TASK = "demo-unlearn", 3, "naming-penguins"
KIT = ["rows=40", "perturbed=2", 'membership=["loss","zlib","min_k","min_k_plus"]']
ATTACK = ["--rows", "20,40,60"]
NO_ADAPTER = {"kind": "none", "also_train": []}
SAM = {"use": "sam", "rho": 0.05}


@dataclass(frozen=True)
class Side:
    """One method in the forget stage."""

    methods: list[dict[str, Any]]
    stage: dict[str, Any] = field(default_factory=dict)
    """Other keys of the stage."""
    differs: str = ""
    """What is not as shipped; empty if all is."""
    attacked: bool = True
    later: list[dict[str, Any]] = field(default_factory=list)
    """Methods of the stage after it."""


def edit(method: dict[str, Any], differs: str = "") -> Side:
    """A method that changes weights and trains nothing."""
    return Side([method], {"epochs": 0, "max_steps": None, "adapter": NO_ADAPTER}, differs)


SIDES: dict[str, Side] = {
    "npo": Side([{"use": "npo"}]),
    "grad_diff": Side([{"use": "grad_diff"}]),
    "gs_lora": Side([{"use": "gs_lora"}]),
    "idk": Side([{"use": "idk"}]),
    "safe_eraser": Side([{"use": "safe_eraser"}]),
    "ssd": edit(
        {"use": "ssd", "units": ["down_proj"], "rows": 64, "alpha": {"search": [50, 25, 10, 5, 2], "rows": 32}},
        "units down_proj, 64 rows, alpha searched",
    ),
    "iau": edit({"use": "iau", "rows": 64}, "64 rows"),
    "ga": Side([{"use": "ga"}]),
    "kl_min": Side([{"use": "kl_min"}]),
    "idk_dpo": Side([{"use": "idk_dpo"}]),
    "alt_po": Side([{"use": "alt_po"}], {"alternate": "demo/naming-owls"}),
    "sim_npo": Side([{"use": "sim_npo"}]),
    "rmu": Side([{"use": "rmu"}]),
    "wga": Side([{"use": "wga"}]),
    "satimp": Side([{"use": "satimp"}]),
    "ce_u": Side([{"use": "ce_u"}]),
    "undial": Side([{"use": "undial"}]),
    "pdu": Side([{"use": "pdu"}]),
    "bounded_forget": Side([{"use": "bounded_forget"}]),
    "npo + sam": Side([{"use": "npo"}, SAM], {}, "rho 0.05"),
    "npo + prompt_decouple": Side([{"use": "npo"}, {"use": "prompt_decouple"}]),
    "npo + retain_kl": Side([{"use": "npo"}, {"use": "retain_kl"}]),
    "bounded_forget + sam": Side([{"use": "bounded_forget"}, SAM], {}, "rho 0.05"),
    **{
        f"sim_npo + optimistic_forget, {told}": Side(
            [{"use": "sim_npo"}, {"use": "optimistic_forget", "audit": audit}],
            later=[{"use": "optimistic_forget", "audit": audit}],
            differs="the stage after it has optimistic_forget too",
        )
        for told, audit in (("audit on", True), ("audit off", False))
    },
}
"""By name, in the order in which they run; the first one's run lends its learned stages to all others of its seed."""


class Clock:
    """A reporter that keeps the processor seconds of each stage, up to its last step or pass."""

    def __init__(self, log: Any) -> None:
        self.log, self.seconds = log, dict.fromkeys(range(1, FORGET + 1), 0.0)
        self._stage, self._mark = 0, 0.0

    def progress(self, progress: Progress) -> None:
        """Count the time since the last event, where that lies in a stage."""
        if progress.phase != "eval":
            self.count()
        self._stage, self._mark = 0 if progress.phase == "eval" else progress.stage, time.process_time()

    def count(self) -> None:
        """Count the time since the last event, where that lies in a stage."""
        if self._stage in self.seconds:
            self.seconds[self._stage] += time.process_time() - self._mark

    def line(self, text: str) -> None:
        """A stage begins with a line that names it."""
        print(text, file=self.log, flush=True)
        if begins := re.match(r"stage (\d+) of \d+: ", text):
            self._stage, self._mark = int(begins[1]), time.process_time()


def main() -> int:
    """Do what is missing, collect, write."""
    parser = argparse.ArgumentParser(description="unlearning methods on one sequence")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", choices=list(SIDES), metavar="METHOD", help=", ".join(SIDES))
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="one file per finished side (default: HOME/results)"
    )
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="run nothing, write what is finished into a page")
    args = parser.parse_args()
    results = args.results or args.home / "results"
    for folder in (args.home, results):
        folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in SIDES if not args.only or name in args.only]
    failed = []
    for seed, name in [(s, n) for s in args.seeds for n in names] if not args.docs else []:
        if not result_file(results, name, seed).is_file():
            print(f"{name}, seed {seed} …", flush=True)
            try:
                write_json(result_file(results, name, seed), one(args.home, name, seed))
            except McitError as error:
                failed.append(name)
                print(f"{name}, seed {seed}: {error}", flush=True)
                if error.exit_code == 75:
                    return 75
    done = {name: [result_file(results, name, s) for s in args.seeds] for name in SIDES}
    found = {name: [json.loads(p.read_text()) for p in paths if p.is_file()] for name, paths in done.items()}
    text = table({name: entries for name, entries in found.items() if entries})
    if args.docs:
        write_between(args.docs, MARKS, text)
    print(text)
    return int(bool(failed))


# ---- one side ----------------------------------------------------------------------------------------------------------
def slug(name: str, seed: int) -> str:
    """As part of the names of runs and files."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name)}-s{seed}"


def result_file(results: Path, name: str, seed: int) -> Path:
    """Where what was measured of a side lies."""
    return results / f"{slug(name, seed)}.json"


def overrides(name: str, seed: int) -> list[str]:
    """Settings of a side's run."""
    side = SIDES[name]
    stage = {"methods": side.methods, **side.stage}
    own = [f"stages.{FORGET - 1}.{key}={json.dumps(value)}" for key, value in stage.items()]
    own += [f"stages.{FORGET}.methods={json.dumps(side.later)}"] if side.later else []
    return [f"name=unlearn-{slug(name, seed)}", f"seed={seed}", *own]


def one(home: Path, name: str, seed: int) -> dict[str, Any]:
    """Run, measure and attack one side: its result. Raises McitError for what fails; it can be called again."""
    from mcit.cli.common import StopFlag
    from mcit.cli.main import main as mcit
    from mcit.cli.run import steps_of, train
    from mcit.plan.plan import read_config

    stop = StopFlag()
    stop.install()
    runs, first = home / "runs", next(iter(SIDES))
    config, text = read_config(CONFIG, overrides(name, seed))
    parent = None if name == first else run_of(home, first, seed)
    planned, opened = steps_of(config, runs, parent=str(parent) if parent else None)
    begun = run_of(home, name, seed) is not None
    with open(home / f"{slug(name, seed)}.log", "a") as log:
        clock = Clock(log)
        given: dict[str, Any] = {"engine": config.engine, "config_text": text, "stop": stop}
        try:
            root = train(planned, opened, make_reporter=lambda: clock, **given).root
        except TrainingError as error:
            clock.count()
            return {"refused": str(error), "processor_seconds": None if begun else clock.seconds[FORGET]}
        times = root / "stage-seconds.json"
        if not begun:
            write_json(times, clock.seconds)
        calls = [["eval", str(root), "--after", str(FORGET), "--kit", *KIT]]
        if SIDES[name].attacked:
            control = "base" if name == first else "none"
            calls.append(["attack", str(root), "--stage", str(FORGET), *ATTACK, "--control", control])
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            for call in calls:
                if code := mcit(call):
                    raise SystemExit(code)
    seconds = json.loads(times.read_text()) if times.is_file() else {}
    learned = [seconds[str(stage)] for stage in range(1, FORGET) if seconds.get(str(stage))]
    taken = {"processor_seconds": seconds.get(str(FORGET)), "learned_seconds": sum(learned) or None}
    return {**entry(root), **taken}


def run_of(home: Path, name: str, seed: int) -> Path | None:
    """The side's run, if it was begun."""
    return next((p.parent for p in (home / "runs").glob(f"unlearn-{slug(name, seed)}-*/manifest.json")), None)


def entry(run: Path) -> dict[str, Any]:
    """What the table holds of a run: accuracies in percent, SARR and AUC as shares."""
    from mcit.report.attacks import read_attacks
    from mcit.report.forgetting import read_forgetting
    from mcit.report.kit import read_kits
    from mcit.report.tables import full_report

    (forgotten,) = [e for e in read_forgetting(run, mode="strict") if e["task"] == TASK]
    (kit,) = [e for e in read_kits(run, mode="strict") if e["after"] == forgotten["stage"]]
    attacks = {str(r["rows"]): r for record in read_attacks(run) for r in record["results"]}
    controls = [record["controls"] for record in read_attacks(run) if record["controls"]]
    keys = ("before", "after", "retained_before", "retained", "elsewhere", "most_lost_elsewhere", "resurgence", "later")
    measured = ("probability", "utility", "min_k", "priv_leak", "same_question", "same_picture", "refusal", "gibberish")
    steps = {cost["stage"]: cost["steps"] for cost in full_report(run)["costs"]}
    return {
        **{key: forgotten[key] for key in keys},
        **{key: kit[key] for key in measured},
        "relearned": {rows: found["accuracy"] for rows, found in attacks.items()},
        "robustness": {rows: found["robustness"] for rows, found in attacks.items()},
        "controls": controls,
        "steps": steps.get(forgotten["stage"]),
        "run": run.name,
    }


# ---- the table -----------------------------------------------------------------------------------------------------------
HEAD = (
    "method", "seeds", "Acc_f", "lost elsewhere", "resurgence", "utility", "Min-K AUC", "PrivLeak", "SARR question",
    "SARR picture", "relearned 20 / 40 / 60", "processor s", "not as shipped",
)  # fmt: skip


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means over seeds, and the range where there are several."""
    if not found:
        return "Nothing is finished yet."
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name, entries in found.items():
        refused = [e["refused"] for e in entries if "refused" in e]
        differs = "; ".join(filter(None, [SIDES[name].differs if name in SIDES else "", *dict.fromkeys(refused)]))
        measured = [e for e in entries if "refused" not in e]
        again = " / ".join(spread([e["relearned"].get(n) for e in measured], 0) for n in ("20", "40", "60"))
        cells = [
            f"`{name}`",
            str(len(entries)),
            *(spread([e[key] for e in measured]) for key in ("after", "most_lost_elsewhere", "resurgence")),
            *(spread([e[key] for e in measured], 2) for key in ("utility", "min_k")),
            spread([e["priv_leak"] for e in measured]),
            *(spread([e[key] for e in measured], 2) for key in ("same_question", "same_picture")),
            again,
            spread([e["processor_seconds"] for e in entries], 0),
            differs,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    every = [e for entries in found.values() for e in entries]
    about = (
        f"{len(every)} runs, {os.cpu_count()}-core CPU machine with other work; accuracies in percent; mean over seeds"
    )
    then = [spread([e.get(key) for e in every]) for key in ("before", "retained_before")]
    before = f"Before the stage: Acc_f {then[0]}, retained {then[1]}"
    learned = spread([e.get("learned_seconds") for e in every], 0)
    before += f"; learning both tasks anew takes {learned} processor s"
    control = [c for e in every for c in e.get("controls", [])]
    told = [f"{r['rows']} rows {r['accuracy']:.0f}" for c in control[:1] for r in c.get("base", [])]
    last = f" The base, attacked in the same way: {', '.join(told)}." if told else ""
    return "\n".join([f"{about} (lowest to highest).", f"{before}.{last}", "", *lines])


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean, with the lowest and highest value where they differ; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, low, high = (f"{v:.{digits}f}" for v in (sum(known) / len(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
