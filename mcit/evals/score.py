"""Predictions to a score: a pure function, in strict and in fixed mode, with what accuracy alone does not tell.

Accuracies are in percent. Reads predictions only: needs no model and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcit.core import lookup
from mcit.core.errors import StateError
from mcit.core.files import canonical_json, parse_json, read_bytes, sha256_bytes, write_bytes
from mcit.core.records import AnyScore, Rows, Score
from mcit.core.stored import read_sealed, valid, write_sealed
from mcit.core.types import JsonDict
from mcit.evals.bootstrap import interval
from mcit.evals.scorers.base import MODES, Gold, Mode, Scorer
from mcit.evals.style import format_valid, style_of

SCORE, ROWS = "score.json", "rows.json"
_EQUAL = 1e-9


@dataclass(frozen=True)
class Scored:
    """The score of a task and what it was computed from, per question."""

    score: JsonDict
    """Content of ``score.json``."""
    rows: JsonDict
    """Parallel lists ``id``, ``strict``, ``fixed``, ``valid`` with values of 0 to 1."""


def load_scorer(name: str) -> Scorer:
    """The scorer of this file name. Raises ConfigError when there is none."""
    scorer: Scorer = lookup.class_of("evals.scorers", name, base=Scorer)()
    return scorer


def score_predictions(
    predictions: Sequence[Mapping[str, Any]], *, scorer: str, style: str, extra: Mapping[str, Any] | None = None
) -> Scored:
    """Score every prediction under both modes; `extra` (filters, lineage, …) goes into the score as it is.

    A row's own style, if it has one that is known, is what its answer is compared with; `style` is that of the others.
    Raises StateError for no predictions at all, ConfigError for a scorer or `style` that does not exist.
    """
    if not predictions:
        raise StateError("there is nothing to score", where=f"scorer {scorer}", fix="add a row to the test split")
    judge = load_scorer(scorer)
    golds = [{**p["gold"], "question": p["question"]} for p in predictions]
    texts = [str(p["text"]) for p in predictions]
    pairs = list(zip(texts, golds, strict=True))
    rows: JsonDict = {"id": [p["id"] for p in predictions]}
    for mode in MODES:
        rows[mode] = [judge.score(text, gold, mode=mode) for text, gold in pairs]
    rows["valid"] = [float(format_valid(text, style_of(gold, style), gold)) for text, gold in pairs]
    n = len(predictions)
    lenient = _percent([judge.lenient(text, gold) for text, gold in pairs])
    constants = judge.constants(golds)
    whole = judge.corpus(texts, golds)
    score: JsonDict = {
        "n": n,
        "strict": _mode_part(rows, "strict", golds, judge, constants),
        "fixed": _mode_part(rows, "fixed", golds, judge, constants),
        "format_validity": _percent(rows["valid"]),
        "format_validity_interval": _interval(rows["valid"], rows["id"]),
        "lenient": lenient,
        "lenient_minus_strict": lenient - _percent(rows["strict"]),
        **_lengths(predictions),
        **_near_ties(predictions),
        "scorer": {"name": scorer, "version": judge.version, "strict_rule": judge.published},
        "style": style,
        **({"corpus": whole} if whole else {}),
        **(extra or {}),
    }
    return Scored(score, rows)


def _lengths(predictions: Sequence[Mapping[str, Any]]) -> JsonDict:
    """How long answers are and how many were cut off; None for answers made elsewhere, whose tokens are not known."""
    if any(p["tokens"] is None for p in predictions):
        return {"truncation_rate": None, "mean_length": None}
    return {
        "truncation_rate": _percent([float(p["truncated"]) for p in predictions]),
        "mean_length": sum(p["tokens"] for p in predictions) / len(predictions),
    }


def _near_ties(predictions: Sequence[Mapping[str, Any]]) -> JsonDict:
    """Answers that hang on two tokens whose scores are almost equal, by id; nothing where no scores were seen."""
    known = [p for p in predictions if "near_tie" in p]
    ids = [p["id"] for p in known if p["near_tie"] is not None]
    return {"near_ties": {"known": len(known), "count": len(ids), "ids": ids}} if known else {}


def _mode_part(rows: JsonDict, mode: Mode, golds: Sequence[Gold], judge: Scorer, constants: Sequence[str]) -> JsonDict:
    """Accuracy of one mode with its interval, on format-valid answers, and against the best constant answer."""
    accuracy = _percent(rows[mode])
    valid = [value for value, fits in zip(rows[mode], rows["valid"], strict=True) if fits]
    best, answer = _best_constant(judge, golds, mode, constants)
    return {
        "accuracy": accuracy,
        "interval": _interval(rows[mode], rows["id"]),
        "accuracy_on_valid": _percent(valid) if valid else None,
        "constant": best,
        "constant_answer": answer,
        "kappa": kappa(accuracy, best),
    }


def _best_constant(judge: Scorer, golds: Sequence[Gold], mode: Mode, constants: Sequence[str]) -> tuple[float, str]:
    best, answer = 0.0, ""
    for text in constants:
        accuracy = _percent([judge.score(text, gold, mode=mode) for gold in golds])
        if accuracy > best + _EQUAL:
            best, answer = accuracy, text
    return best, answer


def kappa(accuracy: float, constant: float) -> float | None:
    """Share of the way from the best constant answer to 100 %, given in percent; None if the constant is perfect."""
    return (accuracy - constant) / (100.0 - constant) if constant < 100.0 - _EQUAL else None


def _percent(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values)


def _interval(values: Sequence[float], ids: Sequence[str]) -> list[float] | None:
    return interval([100.0 * v for v in values], ids)


def write_score(folder: Path, scored: Scored, *, model: type[AnyScore] = Score) -> None:
    """Write ``rows.json``, then ``score.json`` with the checksum of the first: a score is whole or absent."""
    rows = (canonical_json(scored.rows) + "\n").encode()
    score = {**scored.score, "rows_sha256": sha256_bytes(rows)}
    valid(model, score, where=folder / SCORE)
    write_bytes(folder / ROWS, rows)
    write_sealed(folder / SCORE, score)


def read_score(folder: Path) -> JsonDict | None:
    """A finished score; None if there is none. Raises StateError for a damaged file."""
    return read_sealed(folder / SCORE, Score) if (folder / SCORE).is_file() else None


def read_rows(folder: Path) -> JsonDict | None:
    """Results per question of a finished score; None if there is none.

    Raises StateError for a damaged score, and when the results are not those that it was made from.
    """
    score = read_score(folder)
    if score is None:
        return None
    path = folder / ROWS
    data = read_bytes(path)
    if sha256_bytes(data) != score["rows_sha256"]:
        raise StateError(f"is not what {SCORE} was made from: its checksum differs", where=str(path), fix=Rows.fix)
    return valid(Rows, parse_json(data, where=str(path)), where=path)
