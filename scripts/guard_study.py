"""The guard on the demo's unlearning sequence: which prompts its detector takes, what is said, and what it costs per token.

    python scripts/guard_study.py --home FOLDER [--seeds 0 1 2] [--detectors mlp analytic] [--docs docs/forgetting.md]

Per detector and seed one run of ``configs/demo-unlearn.yaml`` whose forget stage trains nothing and fits a guard; the stages
before it are trained once a seed. Rows are those of the forgetting kit: prompts to forget that the detector was not fitted on,
other pictures with the same question, the same pictures with another question, and what else is retained. Seconds per token of
an answer with the guard over those without it, on the same rows, in turns: the median of the ratios of neighbouring pairs,
and their quartiles. What is in FOLDER is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mcit.core.types import Row
from mcit.evals.inference import wilson
from scripts.pages import write_between

MARKS = ("<!-- guard on the demo: written by scripts/guard_study.py -->", "<!-- guard on the demo: end -->")
CONFIG, FORGET = "demo-unlearn", 3
DETECTORS = ("mlp", "analytic")
BATCH = 20


def overrides(detector: str, seed: int) -> list[str]:
    """Settings of a run."""
    stage = {"epochs": 0, "max_steps": None, "adapter": {"kind": "none", "also_train": []}}
    stage |= {"methods": [{"use": "guard", "detector": detector}]}
    own = [f"stages.{FORGET - 1}.{key}={json.dumps(value)}" for key, value in stage.items()]
    return [
        f"name=guard-{detector}-s{seed}",
        f"seed={seed}",
        *own,
        'eval.filters=[{"use": "guard"}]',
        "eval.tasks=none",
    ]


def run_of(home: Path, detector: str, seed: int) -> Path:
    """The run, made or continued. Raises SystemExit where it failed."""

    def begun(kind: str) -> Path | None:
        return next((path.parent for path in (home / "runs").glob(f"guard-{kind}-s{seed}-*/manifest.json")), None)

    given = [part for setting in overrides(detector, seed) for part in ("--set", setting)]
    command = [sys.executable, "-m", "mcit", "run", CONFIG, "--runs-dir", str(home / "runs"), *given]
    parent = next((run for kind in DETECTORS if kind != detector and (run := begun(kind))), None)
    if parent and not begun(detector):
        command += ["--from", str(parent), "--stage", str(FORGET - 1)]
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(code)
    run = begun(detector)
    assert run is not None
    return run


# ---- measuring -----------------------------------------------------------------------------------------------------------
def measured(run: Path, *, rows: int, repeats: int) -> dict[str, Any]:
    """Shares of guarded prompts per kind of row, what was said, and seconds per token against those without the guard."""
    from mcit.cli.common import Lines, plan_of_run, start_torch
    from mcit.core.schema import KitConfig
    from mcit.evals.filtering import load_filters
    from mcit.evals.generator import greedy
    from mcit.runs.run import open_existing
    from mcit.train.kit import sets_of
    from mcit.train.sequence import Session, left_state

    start_torch()
    opened = open_existing(run)
    session = Session(plan_of_run(opened), opened, Lines())
    plan, device = session.plan, session.device
    stage = plan.stages[FORGET - 1]
    sets = sets_of(plan, stage, KitConfig(rows=rows))
    model = session.model_after(FORGET)
    (guard,) = load_filters(plan.config.eval.filters)
    near = {k: v for k, v in sets.near.items() if v and k != "decoupled"}
    kinds: dict[str, Sequence[Row]] = {"forget, not seen": sets.holdout, **near, **other(sets.tasks, near)}
    out: dict[str, Any] = {"kinds": {}}
    tokens = sets.max_new_tokens
    with greedy(model, session.encoder, max_new_tokens=tokens, state=left_state(plan, opened, FORGET)) as generator:
        chosen: dict[str, list[Row]] = {"passed": [], "guarded": []}
        for kind, asked in kinds.items():
            acted, said = [], []
            for k in range(0, len(asked), BATCH):
                batch = asked[k : k + BATCH]
                said += [line["text"] for line in generator.answer(batch, filters=[guard], device=device)]
                acted += guard.acts_on(batch)
            for row, acts in zip(asked, acted, strict=True):
                chosen["guarded" if acts else "passed"].append(row)
            right = sum(text.strip() == row.answer for text, row in zip(said, asked, strict=True))
            out["kinds"][kind] = {"rows": len(asked), "guarded": sum(acted), "right": right}
        for which, some in chosen.items():
            for size in (1, BATCH):
                if not some:
                    continue
                parts = [some[k : k + size] for k in range(0, min(len(some), BATCH), size)]

                def answers(filters: Sequence[Any], parts: list[list[Row]] = parts) -> list[Any]:
                    return [generator.answer(part, filters=filters, device=device) for part in parts]

                out[f"{which}, {size} at a time"] = ratios(
                    lambda: answers(()), lambda: answers((guard,)), repeats=repeats
                )
    return out


def other(tasks: Mapping[str, Sequence[Row]], near: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """Retained tasks whose rows are in none of the near kinds."""
    known = {(row.task, row.id) for rows in near.values() for row in rows}
    found = {name: [row for row in rows if (row.task, row.id) not in known] for name, rows in tasks.items()}
    return {f"task {name}": rows for name, rows in found.items() if rows}


def ratios(plain: Callable[[], Any], guarded: Callable[[], Any], *, repeats: int) -> dict[str, Any]:
    """Seconds per token of `guarded` over those of `plain`, called in turns."""
    plain(), guarded()
    found = []
    for _ in range(repeats):
        without, with_guard = per_token(plain), per_token(guarded)
        found.append(with_guard / without)
    low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    return {"ratio": statistics.median(found), "quartiles": [low, high], "repeats": repeats}


def per_token(call: Callable[[], Any]) -> float:
    """Seconds per token that was written, one counted for an answer's end."""
    start = time.perf_counter()
    answers = [line for batch in call() for line in batch]
    return (time.perf_counter() - start) / sum(line["tokens"] + 1 for line in answers)


# ---- the table -----------------------------------------------------------------------------------------------------------
def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: shares over all seeds of a detector, then ratios of time."""
    lines = ["| detector | seeds | prompts | rows | guarded % (95 %) | right answers % |", "|---|---|---|---|---|---|"]
    times = ["| detector | rows | seconds per token with / without, per seed |", "|---|---|---|"]
    for detector in dict.fromkeys(one["detector"] for one in found):
        own = [one for one in found if one["detector"] == detector]
        for kind in dict.fromkeys(kind for one in own for kind in one["kinds"]):
            counts = [one["kinds"][kind] for one in own if kind in one["kinds"]]
            rows, guarded, right = (sum(c[key] for c in counts) for key in ("rows", "guarded", "right"))
            low, high = wilson(guarded, rows)
            share = f"{100 * guarded / rows:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            lines.append(f"| `{detector}` | {len(counts)} | {kind} | {rows} | {share} | {100 * right / rows:.1f} |")
        for which in dict.fromkeys(key for one in own for key in one if key.endswith("at a time")):
            told = [(one[which]["ratio"], *one[which]["quartiles"]) for one in own if which in one]
            ratio = ", ".join(f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in told)
            times.append(f"| `{detector}` | {which} | {ratio} |")
    return "\n".join([*lines, "", *times])


def main() -> int:
    """Measure what is missing, write the table."""
    parser = argparse.ArgumentParser(description="the guard on the demo")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--rows", type=int, default=60, help="at most so many of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="measure nothing, write what is finished into a page")
    args = parser.parse_args()
    args.home.mkdir(parents=True, exist_ok=True)
    found = []
    for detector in args.detectors:
        for seed in args.seeds:
            out = args.home / f"{detector}-s{seed}.json"
            if not out.is_file() and not args.docs:
                run = run_of(args.home, detector, seed)
                result = {"detector": detector, "seed": seed, **measured(run, rows=args.rows, repeats=args.repeats)}
                out.write_text(json.dumps(result, indent=1) + "\n")
            if out.is_file():
                found.append(json.loads(out.read_text()))
    text = table(found)
    if args.docs:
        write_between(args.docs, MARKS, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
