"""Studies of what probes measure: the stability gap over methods and seeds, and few-shot memory over splits and seeds.

    python scripts/probe_study.py gap --home FOLDER --seeds 0 --methods ewc
    python scripts/probe_study.py memory --home FOLDER --seeds 0 --splits strings
    python scripts/probe_study.py gap --home FOLDER --docs docs/probes.md

The first two run what is missing of the sides named, one `mcit run` per method (split) and seed, and are called again to go on
where they were stopped; calls for different sides may share a folder and run at the same time. What a side printed is in
FOLDER/STUDY-KIND-sSEED.log; exit code 1 where one failed. What its probes measured is one small file in DIR (--results,
FOLDER/results), to be kept without the runs: what is there is not done again. The last one runs nothing: it puts together what
is finished, in FOLDER/gap.json (memory.json) and as a table between its marks in the page.

*Gap*: every step is measured in the first 30 of each stage (norms of gradients in the first 5). Drop is the accuracy (whole
answers by teacher-forced tokens) of an earlier task before the first update minus a later one, recovery the last one minus that
later one. With the lowest accuracy as the later one, noise alone makes both positive, so they are also given at the step at
which the mean of the *other* seeds is lowest; so are rises of the answer loss, and its falls after them. Means over pairs of
seed, stage and earlier task; 95 % intervals resample these pairs.
*Memory*: shares over the seeds of a split, which study the same texts in other orders: Wilson's interval is that of one run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mcit.core.files import read_json, write_json
from mcit.evals.inference import wilson
from mcit.report.probes import read_probes, rho
from scripts.pages import write_between

METHODS = ("none", "replay", "lwf", "ewc")
SPLITS = ("sentences", "paraphrase", "synonym", "strings", "strings-real", "shuffled")
CONFIGS = {"gap": "demo", "memory": "memory"}
ROWS = {"gap": 64, "memory": 144}
PROBE = "{use: stability, every: 1, dense: 30, later: 10, split: test, rows: %d, answers: 0, norms: 5, share: null}"
MARKS = {
    study: (f"<!-- {study} study: written by scripts/probe_study.py -->", f"<!-- {study} study: end -->")
    for study in CONFIGS
}
CURVE = (0, 1, 2, 3, 5, 10, 20, 30)
"""Steps of a stage that the table of a gap study shows, besides the last one."""
AFTER = (1, 10, 100, 1000)
"""Steps after the study stage that the table of a memory study shows."""
RESAMPLES = 2000

Found = Mapping[int, Mapping[str, Any]]
"""By seed, what the probes of a run measured."""


# ---- runs --------------------------------------------------------------------------------------------------------------
def settings(study: str, kind: str, seed: int, rows: int) -> list[str]:
    """What distinguishes a side from the config."""
    own = [f"name={study}-{kind}-s{seed}", f"seed={seed}"]
    if study == "memory":
        return [*own, f"stages.0.recipe=memory/{kind}", f"probes=[{{use: memory, rows: {rows}}}]"]
    methods = "[]" if kind == "none" else f"[{{use: {kind}}}]"
    return [*own, f"probes=[{PROBE % rows}]", f"defaults.methods={methods}"]


def finished(home: Path, study: str, kind: str, seed: int) -> Path | None:
    """The run of a side, if its report is there. Exits where runs of two settings have its name."""
    runs = sorted((home / "runs").glob(f"{study}-{kind}-s{seed}-*/report/report.json"))
    if len(runs) > 1:
        raise SystemExit(f"runs of two settings in one folder: {', '.join(p.parent.parent.name for p in runs)}")
    return runs[0].parent.parent if runs else None


def measured(home: Path, results: Path, study: str, kind: str, seed: int) -> dict[str, Any] | None:
    """What the probes of a side measured, from its file, which is written where its run is finished; None before that."""
    file = results / f"{study}-{kind}-s{seed}.json"
    run = None if file.is_file() else finished(home, study, kind, seed)
    if run:
        write_json(file, read_probes(run))
    return read_json(file) if file.is_file() else None


def run_side(home: Path, study: str, kind: str, seed: int, *, config: str, given: Sequence[str]) -> bool:
    """Run a side with its settings, or continue it; whether it ended well."""
    sets = [part for setting in given for part in ("--set", setting)]
    command = [sys.executable, "-m", "mcit", "run", config, "--runs-dir", str(home / "runs"), *sets]
    with open(home / f"{study}-{kind}-s{seed}.log", "ab") as log:
        return subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0


# ---- the gap -----------------------------------------------------------------------------------------------------------
def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval, and how many values it is of."""
    data, draw = np.asarray(values, dtype=float), np.random.RandomState(0)
    means = data[draw.randint(0, len(data), (RESAMPLES, len(data)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(data.mean()), "interval": [float(low), float(high)], "n": len(data)}


def curves(one: Mapping[str, Any], key: str = "accuracy") -> dict[str, dict[int, float]]:
    """Accuracy (or loss) by step of the stage, of every earlier task in every stage of a run, named ``stage 2, TASK``."""
    out: dict[str, dict[int, float]] = {}
    for gap in one["stability"]["gaps"]:
        mine = [e for e in one["lines"]["stability"] if e["stage"] == gap["stage"] and "values" in e]
        values = {e["step"]: e["values"]["tasks"][gap["task"]][key] for e in mine}
        out[f"stage {gap['stage']}, {gap['task']}"] = values
    return out


def measured_rows(one: Mapping[str, Any]) -> int:
    """Rows of a task that a run measured: a task may have fewer than were asked for."""
    lines = [line["values"] for line in one["lines"]["stability"] if "values" in line]
    return int(max(entry["rows"] for entry in lines[0]["tasks"].values()))


def fair(every: Mapping[int, Mapping[str, Mapping[int, float]]], sign: int = 1) -> dict[str, list[float]]:
    """Drops and recoveries of each seed at the step at which the mean curve of the other seeds is lowest.

    With `sign` -1, of a loss: rises, and falls afterwards, where it is highest.
    """
    out: dict[str, list[float]] = {"drop": [], "recovery": []}
    for seed, mine in every.items():
        others = [curve for other, curve in every.items() if other != seed]
        for name, curve in mine.items() if others else ():
            low = min(sorted(curve)[1:], key=lambda step: sign * sum(other[name][step] for other in others))
            out["drop"].append(sign * (curve[0] - curve[low]))
            out["recovery"].append(sign * (curve[max(curve)] - curve[low]))
    return out


def gap_of(found: Found) -> dict[str, Any]:
    """Over the runs of one method: drop, recovery and step of the minimum, metrics and curves of each run, overhead."""
    gaps = [gap for one in found.values() for gap in one["stability"]["gaps"]]
    out: dict[str, Any] = {key: summary([gap[key] for gap in gaps]) for key in ("drop", "recovery", "step")}
    every = {seed: curves(one) for seed, one in found.items()}
    losses = {seed: curves(one, "loss") for seed, one in found.items()}
    for key, chosen in (("fair", fair(every)), ("fair_loss", fair(losses, -1))):
        out[key] = {name: summary(values) for name, values in chosen.items() if values}
    out["seeds"] = list(found)
    out["metrics"] = [one["stability"]["metrics"] for one in found.values()]
    out["curves"], out["losses"] = list(every.values()), list(losses.values())
    out["settings"] = [{**one["stability"]["settings"], "rows": measured_rows(one)} for one in found.values()]
    shares = [[s["share"] for s in one["shares"] if s["probe"] == "stability"] for one in found.values()]
    return {**out, "share_of_step_time": shares}


def gap_table(result: Mapping[str, Any]) -> str:
    """Markdown: drops and recoveries with intervals, metrics over seeds, then the mean curve of every earlier task."""
    head = [
        "method", "seeds", "drop", "recovery", "step of the minimum", "drop, fair", "recovery, fair", "loss: rise, fair",
        "loss: fall after it, fair", "ACC", "min-ACC",
        "WC-ACC", "WF, w = 10",
    ]  # fmt: skip
    lines = ruled(head)
    for kind, one in result.items():
        metrics = [[m["acc"], m["min_acc"], m["wc_acc"], m["wf"]["10"]] for m in one["metrics"]]
        cells = [around(one[key]) for key in ("drop", "recovery")] + [around(one["step"], 1)]
        cells += [around(one[of].get(key)) for of in ("fair", "fair_loss") for key in ("drop", "recovery")]
        cells += [ranged(list(values)) for values in zip(*metrics, strict=True)]
        lines.append(row([label(kind), str(len(one["seeds"])), *cells]))
    lines += ["", *ruled(["method", "stage, earlier task", *(f"step {step}" for step in CURVE), "last"])]
    for kind, one in result.items():
        for name in one["curves"][0]:
            every = [{int(step): value for step, value in run[name].items()} for run in one["curves"]]
            shown = [mean([curve.get(step) for curve in every]) for step in CURVE]
            lines.append(row([label(kind), name, *shown, mean([curve[max(curve)] for curve in every])]))
    told = "; ".join(
        dict.fromkeys(f"{rho(s)}, {s['rows']} rows a task" for one in result.values() for s in one["settings"])
    )
    pairs = max(one["drop"]["n"] for one in result.values())
    about = f"{told}; shares; mean over up to {pairs} pairs of seed, stage and earlier task (95 % bootstrap interval);"
    return "\n".join([f"{about} metrics: mean over seeds (lowest to highest). Curves: mean over seeds.", "", *lines])


# ---- memory ------------------------------------------------------------------------------------------------------------
def memory_of(found: Found) -> list[dict[str, Any]]:
    """Recognition and exact recall over the runs of one split, by exposures and steps since."""
    pooled: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in found.values():
        for line in one["lines"]["memory"]:
            if line["step"] == 0 and line["stage"] > 1:  # the end of the stage before, once more
                continue
            for entry in line["values"].values():
                pooled.setdefault((entry["exposures"], entry["since"]), []).append(entry)
    out = []
    for (exposures, since), entries in sorted(pooled.items()):
        texts = max(entry["rows"] for entry in entries)
        line = {"exposures": exposures, "since": since, "texts": texts, "runs": len(entries)}
        for key in ("recognised", "exact"):
            shares = [entry[key] / entry["rows"] for entry in entries]
            share = sum(shares) / len(shares)
            spread = [min(shares), max(shares)]
            line[key] = {"share": share, "interval": wilson(share * texts, texts), "range": spread}
        for key in ("rouge_l", "full_rouge_1"):
            line[key] = sum(entry[key] for entry in entries) / len(entries)
        out.append(line)
    return out


def memory_table(result: Mapping[str, Any]) -> str:
    """Markdown: recognition and recall of every split, before, after each exposure and some steps later."""
    moments = sorted({(e["exposures"], e["since"]) for lines in result.values() for e in lines})
    moments = [(shown, since) for shown, since in moments if since in (0, *AFTER)]
    heads = [moment(*one) for one in moments]
    lines: list[str] = []
    for key, title in (("recognised", "recognition"), ("exact", "recall: exact; ROUGE-L")):
        lines += [*([""] if lines else []), *ruled([title, "runs", *heads])]
        for kind, entries in result.items():
            at = {(e["exposures"], e["since"]): e for e in entries}
            cells = [at.get(one) for one in moments]
            shown = [
                "–" if e is None else around(e[key]) + (f"; {e['rouge_l']:.2f}" if key == "exact" else "")
                for e in cells
            ]
            lines.append(row([kind, str(max(e["runs"] for e in entries)), *shown]))
    texts = sorted({e["texts"] for entries in result.values() for e in entries})
    about = (
        f"{', '.join(map(str, texts))} texts a split; shares, mean over runs with Wilson's 95 % interval of one run."
    )
    return "\n".join([f"{about} Steps are those of unrelated texts after the third exposure.", "", *lines])


def moment(exposures: int, since: int) -> str:
    """When something was measured, in words."""
    if since:
        return f"{since} step{'s' * (since > 1)}"
    return f"{exposures} exposure{'s' * (exposures > 1)}" if exposures else "before"


# ---- tables ------------------------------------------------------------------------------------------------------------
def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def ruled(head: Sequence[str]) -> list[str]:
    return [row(head), "|" + "---|" * len(head)]


def label(kind: str) -> str:
    """Of a method."""
    return "sequential" if kind == "none" else f"`{kind}`"


def around(one: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A mean or share with its interval; a dash where there is none."""
    if one is None:
        return "–"
    low, high = (f"{value:.{digits}f}" for value in one["interval"])
    return f"{one['mean'] if 'mean' in one else one['share']:.{digits}f} ({low} to {high})"


def ranged(values: Sequence[float | None]) -> str:
    """Mean with the lowest and the highest of the seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    span = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
    return f"{sum(known) / len(known):.3f}{span}"


def mean(values: Sequence[float | None]) -> str:
    """Of what was measured; a dash where nothing was."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else "–"


def main() -> int:
    """Run what is missing, or put together what is there."""
    parser = argparse.ArgumentParser(description="stability gap or few-shot memory over seeds")
    parser.add_argument("study", choices=tuple(CONFIGS))
    parser.add_argument("--home", type=Path, required=True, help="folder of runs, logs and numbers")
    parser.add_argument("--config", help="name or path (default: demo, memory)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="none is sequential training")
    parser.add_argument("--rows", type=int, help="of each task that are measured (default: 64, 144)")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="in all calls of a folder the same"
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="a file per finished side (default: FOLDER/results)"
    )
    parser.add_argument("--gather", action="store_true", help="run nothing, put together what is finished")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="the same, and write the table into a page")
    args = parser.parse_args()
    results = args.results or args.home / "results"
    for folder in (args.home, results):
        folder.mkdir(parents=True, exist_ok=True)
    sides = [(k, s) for s in args.seeds for k in (args.methods if args.study == "gap" else args.splits)]
    if args.gather or args.docs:
        gathered(args.home, results, args.study, sides, page=args.docs)
        return 0
    config = args.config or CONFIGS[args.study]
    failed = False
    for kind, seed in sides:
        if measured(args.home, results, args.study, kind, seed):
            continue
        print(f"{kind}, seed {seed} …", flush=True)
        given = [*settings(args.study, kind, seed, args.rows or ROWS[args.study]), *args.set]
        if not run_side(args.home, args.study, kind, seed, config=config, given=given):
            failed = True
            print(f"failed, see {args.home / f'{args.study}-{kind}-s{seed}.log'}", flush=True)
        measured(args.home, results, args.study, kind, seed)
    return int(failed)


def gathered(home: Path, results: Path, study: str, sides: Sequence[tuple[str, int]], *, page: Path | None) -> None:
    """Write FOLDER/STUDY.json of the finished sides, print their table and put it into a page."""
    found: dict[str, dict[int, Any]] = {}
    for kind, seed in sides:
        one = measured(home, results, study, kind, seed)
        if one:
            found.setdefault(kind, {})[seed] = one
    result: dict[str, Any] = {kind: (gap_of if study == "gap" else memory_of)(runs) for kind, runs in found.items()}
    write_json(home / f"{study}.json", result)
    text = (gap_table if study == "gap" else memory_table)(result) if result else "Nothing is finished yet."
    if page:
        write_between(page, MARKS[study], text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
