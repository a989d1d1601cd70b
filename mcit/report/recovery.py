"""Whether the truth came back after false answers were forgotten, from a run's files. Imports no torch.

Of a forget stage whose rows were relabelled (the forgetting kit says so) and were trained on in an earlier stage, as the
sequence `restor` makes them (arXiv:2411.00204): what was learned before that stage, and is trained on in neither of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcit.core.types import JsonDict
from mcit.evals.bootstrap import percentile_interval, resampled_means
from mcit.evals.score import read_rows
from mcit.evals.unlearning import recovery
from mcit.runs.gates import standing_of
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan


def read_recovery(run: Path, kits: Sequence[JsonDict], *, mode: str) -> list[JsonDict]:
    """One entry per such stage and overwritten task, with accuracies in percent and recovery after each stage from it on.

    `kits` are the entries of `read_kits`. Raises StateError for a damaged score.
    """
    layout, out = RunLayout(run), []
    stages = standing_of(layout, read_plan(layout)["stages"])
    relabelled = {entry["stage"] for entry in kits if entry.get("residual_corruption") is not None}
    for place, stage in ((k, s) for k, s in enumerate(stages) if s["folder"] in relabelled):
        at = max((k for k, s in enumerate(stages[:place]) if {*s["tasks"]} & {*stage["forget"]}), default=0)
        trained = {*stage["forget"], *stage["tasks"], *stages[at]["tasks"]}
        for task in dict.fromkeys(t for s in stages[:at] for t in s["tasks"] if t not in trained):
            rows = {k: read_rows(layout.evals(s["index"]) / task) for k, s in enumerate(stages) if k >= at - 1}
            right = {k: [float(v) for v in found[mode]] for k, found in rows.items() if found}
            clean, corrupted = right.get(at - 1), right.get(at)
            if clean and corrupted:
                later = {s["folder"]: right[k] for k, s in enumerate(stages) if k in right and k > at}
                ids = next(found["id"] for found in rows.values() if found)
                out.append(
                    {
                        "stage": stage["folder"],
                        "task": task,
                        "corrupted_in": stages[at]["folder"],
                        "clean": 100 * sum(clean) / len(clean),
                        "corrupted": 100 * sum(corrupted) / len(corrupted),
                        "after": {
                            folder: {
                                "accuracy": 100 * sum(now) / len(now),
                                "recovery": with_interval(clean, corrupted, now, ids=ids),
                            }
                            for folder, now in later.items()
                        },
                    }
                )
    return out


def with_interval(
    clean: Sequence[float], corrupted: Sequence[float], now: Sequence[float], *, ids: Sequence[str]
) -> list[float] | None:
    """Recovery of accuracies by question, with its 95 % bootstrap interval over questions; None where nothing was corrupted."""
    cells = [list(clean), list(corrupted), list(now)]
    value = recovery(*(sum(cell) / len(cell) for cell in cells))
    if value is None:
        return None
    drawn = (recovery(*map(float, means)) for means in resampled_means(cells, ids).T)
    return [value, *percentile_interval([one for one in drawn if one is not None])]


def shown(found: Sequence[float] | None) -> str:
    """``0.57 [0.41, 0.73]``; a dash where nothing was corrupted."""
    return "–" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def recovery_lines(entries: Sequence[JsonDict]) -> list[str]:
    """One sentence per task that was overwritten."""
    return [
        f"Recovery of {e['task']}, which {e['corrupted_in']} took from {e['clean']:.1f} to {e['corrupted']:.1f} %: "
        + ", ".join(
            f"{shown(now['recovery'])} after {folder} ({now['accuracy']:.1f} %)" for folder, now in e["after"].items()
        )
        + ". 1 is as before, 0 as corrupted; in brackets the 95 % interval over questions."
        for e in entries
        if e["after"]
    ]
