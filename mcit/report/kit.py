"""What the forgetting kit found, from a run's files: one entry per forget stage and model. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mcit.core.errors import StateError
from mcit.core.records import KitRecord
from mcit.core.stored import read_sealed
from mcit.core.types import JsonDict
from mcit.evals.membership import UNKNOWN, priv_leak
from mcit.evals.memorisation import forget_quality, utility
from mcit.evals.score import read_score
from mcit.runs.layout import KIT, RunLayout
from mcit.runs.ledger import Ledger
from mcit.runs.run import read_plan

COLUMNS = {
    "probability": "probability",
    "exact_memorisation": "memorised",
    "extraction_strength": "extraction",
    "rouge_recall": "ROUGE-L",
    "truth_ratio": "truth ratio",
    "residual_corruption": "false answer likelier",
    "forget_quality": "forget quality p",
    "utility": "utility",
    "min_k": "Min-K AUC",
    "priv_leak": "PrivLeak",
    "refusal": "refused",
    "gibberish": "gibberish",
    "attack_success": "said anyway",
    "retained": "SARR retained",
    "same_question": "SARR same question",
    "same_picture": "SARR same picture",
    "decoupled": "SARR decoupled",
    "four_bit": "probability in 4 bits",
}
"""Key of an entry to the title of its column."""


def read_kits(run: Path, *, mode: str) -> list[JsonDict]:
    """One entry per forget stage and number of stages trained (0: the base), then one for its gold run.

    Numbers are shares, AUCs and p-values from 0 to 1; PrivLeak is in points. None was not measured. Raises StateError for a
    record that is damaged, or gone from its folder.
    """
    layout, out = RunLayout(run), []
    plan = read_plan(layout)
    ledger = Ledger(layout.ledger)
    done = {(line.get("after"), line.get("stage")) for line in ledger.standing("kit")}
    golden = {line.get("stage") for line in ledger.standing("gold")}
    names = {0: "base", **{stage["index"]: stage["folder"] for stage in plan["stages"]}}
    for stage in (s for s in plan["stages"] if s["forget"]):
        gold = _read(layout.gold(stage["folder"]), measured=stage["folder"] in golden)
        for after, name in sorted(names.items()):
            found = _read(layout.kit(after, stage["folder"]), measured=(after, stage["folder"]) in done)
            if found is not None:
                accuracy = {task: _accuracy(layout.evals(after) / task, mode) for task in found["probability"]}
                out.append({"stage": stage["folder"], "after": name, **_entry(found, gold, accuracy)})
        if gold is not None:
            out.append({"stage": stage["folder"], "after": "gold run", **_entry(gold, gold, {})})
    return out


def _read(folder: Path, *, measured: bool = False) -> JsonDict | None:
    if measured and folder.is_dir() and not (folder / KIT).is_file():
        what = "is gone, and the ledger says that the stage was measured"
        raise StateError(what, where=str(folder / KIT), fix="measure again: mcit eval RUN --kit")
    return read_sealed(folder / KIT, KitRecord) if (folder / KIT).is_file() else None


def _accuracy(folder: Path, mode: str) -> float | None:
    score = read_score(folder)
    return None if score is None else score[mode]["accuracy"] / 100


def _entry(found: JsonDict, gold: JsonDict | None, accuracy: dict[str, float | None]) -> JsonDict:
    min_k = found["membership"].get("min_k")
    known = gold["membership"].get("min_k", UNKNOWN) if gold else UNKNOWN
    comparable = gold is not None and len(gold["truth"]) == len(found["truth"]) > 0
    quality = forget_quality(found["truth"], gold["truth"]) if gold and comparable else None
    parts = {f"{task}, probability": value for task, value in found["probability"].items()}
    parts |= {f"{task}, accuracy": value for task, value in accuracy.items() if value is not None}
    near = {name: rates["abnormal"] for name, rates in found["near"].items()}
    return {
        **{key: found["forget"].get(key) for key in COLUMNS if key in found["forget"]},
        "forget_quality": quality[1] if quality else None,
        "utility": utility(parts) if parts else None,
        "utility_parts": parts,
        "min_k": min_k,
        "priv_leak": None if min_k is None else priv_leak(min_k, known),
        **{name: near.get(name) for name in ("retained", "same_question", "same_picture", "decoupled")},
        "four_bit": (found.get("four_bit") or {}).get("probability"),
        "membership": found["membership"],
        "near": found["near"],
        "judge": found.get("judge"),
        "made": found.get("made"),
        "rows": found.get("rows"),
    }


# ---- tables ----------------------------------------------------------------------------------------------------------
def kit_table(entries: Sequence[JsonDict], show: Callable[[Any], str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows, without columns that nothing was measured for; `show` writes a number or its absence."""
    used = [key for key in COLUMNS if any(entry.get(key) is not None for entry in entries)]

    def cell(entry: JsonDict, key: str) -> str:
        value = entry.get(key)
        return f"{value:.2g}" if key == "forget_quality" and value is not None else show(value)

    rows = [[entry["stage"], entry["after"], *(cell(entry, key) for key in used)] for entry in entries]
    return ["forgets", "after", *(COLUMNS[key] for key in used)], rows


def membership_table(entries: Sequence[JsonDict], show: Callable[[Any], str]) -> tuple[list[str], list[list[str]]]:
    """AUC of every attack that was made."""
    kinds = list(dict.fromkeys(kind for entry in entries for kind in entry["membership"]))
    measured = [entry for entry in entries if entry["membership"]]
    rows = [[e["stage"], e["after"], *(show(e["membership"].get(kind)) for kind in kinds)] for e in measured]
    return ["forgets", "after", *kinds], rows


def judge_table(entries: Sequence[JsonDict], show: Callable[[Any], str]) -> tuple[list[str], list[list[str]]]:
    """What a judge said of each set of answers, and how often the rules say the same."""
    keys = ("n", "refusal", "gibberish", "unsafe", "agreement")
    rows = [
        [e["stage"], e["after"], name, str(found["n"]), *(show(found[key]) for key in keys[1:])]
        for e in entries
        for name, found in (e["judge"] or {}).items()
        if found["n"]
    ]
    return ["forgets", "after", "rows", *keys], rows


def made_lines(entries: Sequence[JsonDict]) -> list[str]:
    """One sentence per forget stage on answers that were made here and not given by the data."""
    last = {entry["stage"]: entry for entry in entries if entry["made"]}
    return [
        f"{stage}: wrong answers of {e['made']['perturbed']} of {e['rows']['forget']} rows are those of other entities of the "
        f"recipes; {e['made']['paraphrase_is_answer']} rows have no paraphrase and are compared with the answer itself."
        for stage, e in last.items()
    ]


def kit_csv(entries: Sequence[JsonDict]) -> str:
    """One line per entry; an empty field was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["stage", "after", *COLUMNS])
    for e in entries:
        writer.writerow([e["stage"], e["after"], *("" if e.get(k) is None else f"{e[k]:.6g}" for k in COLUMNS)])
    return out.getvalue()
