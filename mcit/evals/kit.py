"""The forgetting kit: what a model still knows of rows that were to be forgotten, and what it lost beside them.

Measures go from likelihoods and answers, which are kept as predictions are, to one record per forget stage and model,
``kit.json``. Formulas and sources are in `memorisation`, `membership` and `refusing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcit.core.files import digest_of
from mcit.core.ranks import ONE, Ranks, on_first
from mcit.core.records import KitRecord
from mcit.core.schema import KitConfig
from mcit.core.stored import read_sealed, write_sealed
from mcit.core.types import JsonDict, Row
from mcit.data.encode import Encoder
from mcit.evals import membership
from mcit.evals.filtering import Spec
from mcit.evals.generate import predict
from mcit.evals.generator import Sharing
from mcit.evals.gradnorm import gradient_norms
from mcit.evals.judge import judged
from mcit.evals.likelihood import likelihoods
from mcit.evals.memorisation import (
    exact_memorisation,
    extraction_strength,
    mean_loss,
    probability,
    rouge_recall,
    truth_forgotten,
    truth_ratio,
)
from mcit.evals.perturb import answered, truth_of
from mcit.evals.predictions import identity_of, read_predictions
from mcit.evals.refusing import attack_rate, kind_of, rates
from mcit.models.quant import rounded_to_4bit
from mcit.runs.layout import KIT

Lines = Sequence[JsonDict]
ROOM = 32
"""Tokens that an answer has at least: cut after a letter's few, neither a refusal nor a sentence could be told."""
BEFORE = "answer_before"
"""Where the transform `relabel` keeps the answer that it replaced."""


@dataclass(frozen=True)
class Sets:
    """Rows that the kit measures."""

    forget: Sequence[Row]
    """Trained before, to be forgotten."""
    holdout: Sequence[Row]
    """Of the same kind and never trained."""
    tasks: Mapping[str, Sequence[Row]]
    """Test rows of what is retained, by task."""
    near: Mapping[str, Sequence[Row]]
    """Harmless rows that are like those to forget: same question, same picture, or given as decoupled."""
    pool: Sequence[str]
    """Answers of other entities, for wrong ones."""
    max_new_tokens: Mapping[str, int]
    """Longest answer by task, as it is scored."""


@dataclass(frozen=True)
class Subject:
    """A model and how it answers."""

    model: Any
    encoder: Encoder
    device: Any
    lineage: str
    filters: Sequence[Spec] = ()
    state: Mapping[str, Path] = field(default_factory=dict)
    sharing: Sharing = field(default_factory=lambda: Sharing(tokens=None, share=True))


def settings_digest(sets: Sets, config: KitConfig, lineage: str, *, seed: int, reference: str, filters: Any) -> str:
    """Everything that a record depends on."""
    rows = [sets.forget, sets.holdout, *sets.tasks.values(), *sets.near.values()]
    asked = [identity_of({}, part) for part in rows]
    names = [list(sets.tasks), list(sets.near), sorted(set(sets.pool))]
    return digest_of(
        [config.model_dump(mode="json"), lineage, asked, names, [ROOM, sets.max_new_tokens], seed, reference, filters]
    )


def read_kit(folder: Path) -> JsonDict | None:
    """A record; None if there is none. Raises StateError for a damaged one."""
    return read_sealed(folder / KIT, KitRecord) if (folder / KIT).is_file() else None


def measure(
    subject: Subject,
    sets: Sets,
    config: KitConfig,
    *,
    out: Path,
    settings: str,
    batch: int,
    seed: int,
    reference: Mapping[str, Sequence[float]] | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ONE,
) -> None:
    """Measure everything into the folder `out`; what a killed call measured is kept. Every rank calls it.

    `reference` has the mean losses of a model that never saw the rows, of ``forget`` and ``holdout``. Raises Interrupted after
    the batch in which `stop` says so, DataError when the judge does not answer.
    """
    given: dict[str, Any] = {"batch": batch, "device": subject.device, "stop": stop, "ranks": ranks}
    made = {"lineage": subject.lineage}

    def liked(name: str, rows: Sequence[Row]) -> Lines:
        model, encoder = subject.model, subject.encoder
        share = subject.sharing["share"]
        return likelihoods(model, encoder, rows, out=out / name, settings=made, share=share, **given) if rows else []

    def told(name: str, rows: Sequence[Row]) -> list[str]:
        if not rows:
            return []
        predict(
            subject.model,
            subject.encoder,
            rows,
            out=out / name,
            max_new_tokens=room(sets, rows),
            filters=subject.filters,
            state=subject.state,
            settings=made,
            **subject.sharing,
            **given,
        )
        return on_first(ranks, lambda: [str(line["text"]) for line in read_predictions(out / name)])

    forget, holdout = liked("forget", sets.forget), liked("holdout", sets.holdout)
    ratios, notes = _truth(sets, config, seed, forget, lambda rows: liked("truth", rows))
    record: JsonDict = {
        "settings": settings,
        "lineage": subject.lineage,
        "rows": {"forget": len(sets.forget), "holdout": len(sets.holdout)},
        "made": notes,
        "truth": ratios,
        "probability": {
            name: probability(_losses(liked(f"task-{name}", rows))) for name, rows in sets.tasks.items() if rows
        },
    }
    before = liked("before", _before(sets.forget))
    record["forget"] = {
        **_remembered(forget, ratios),
        **_said(sets.forget, told("answers", sets.forget)),
        "residual_corruption": residual(sets.forget, forget, before),
    }
    near = {name: (rows, told(f"near-{name}", rows)) for name, rows in sets.near.items()}
    record["near"] = {
        name: rates([kind_of(text, expected=row.answer) for row, text in zip(rows, texts, strict=True)])
        for name, (rows, texts) in near.items()
    }
    norms = {}
    if "gradnorm" in config.membership and holdout:
        norms = {
            name: gradient_norms(subject.model, subject.encoder, rows, device=subject.device, ranks=ranks)
            for name, rows in (("forget", sets.forget), ("holdout", sets.holdout))
        }
    parts = {"forget": (sets.forget, forget), "holdout": (sets.holdout, holdout)}
    record["membership"] = areas(parts, config.membership, reference or {}, norms) if holdout else {}
    if config.four_bit:
        with rounded_to_4bit(subject.model):
            texts = told("4bit-answers", sets.forget)
            record["four_bit"] = {**_remembered(liked("4bit", sets.forget), []), **_said(sets.forget, texts)}
    if config.judge:
        asked = {"forget": (sets.forget, told("answers", sets.forget)), **near}
        record["judge"] = on_first(ranks, lambda: judged(asked, config.judge, out=out))  # type: ignore[arg-type]
    on_first(ranks, lambda: write_sealed(out / KIT, record))


def room(sets: Sets, rows: Sequence[Row]) -> int:
    """Tokens that answers to some rows may have: those of the task with the longest ones, and at least `ROOM`."""
    return max(ROOM, *(sets.max_new_tokens[row.task] for row in rows))


def areas(
    parts: Mapping[str, tuple[Sequence[Row], Lines]],
    kinds: Sequence[str],
    reference: Mapping[str, Sequence[float]],
    norms: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """AUC of each attack; `reference` only where the mean losses of another model are known."""

    def scores(kind: str, name: str) -> list[float]:
        rows, lines = parts[name]
        if kind == "gradnorm":
            return list(norms[name])
        if kind == "reference":
            pairs = zip(_losses(lines), reference[name], strict=True)
            return [membership.reference_score(loss, other) for loss, other in pairs]
        return [_score(kind, row, _body(line)) for row, line in zip(rows, lines, strict=True)]

    known = [kind for kind in kinds if kind != "reference" or reference]
    return {kind: membership.auc(scores(kind, "forget"), scores(kind, "holdout")) for kind in known}


def _score(kind: str, row: Row, line: JsonDict) -> float:
    if kind == "loss":
        return mean_loss(line["logprobs"])
    if kind == "zlib":
        return membership.zlib_score(line["logprobs"], row.answer)
    if kind == "min_k":
        return membership.min_k(line["logprobs"])
    return membership.min_k_plus(line["logprobs"], line["mean"], line["variance"])


def mean_losses(folder: Path) -> dict[str, list[float]]:
    """Mean losses that a measurement kept of the rows to forget and the holdout; empty lists where there are none."""
    from mcit.evals.likelihood import read_likelihoods

    return {
        name: _losses(read_likelihoods(folder / name)) if (folder / name).is_dir() else []
        for name in ("forget", "holdout")
    }


def _body(line: JsonDict) -> JsonDict:
    """A line without its end token; an answer that is nothing else keeps it."""
    n = line["body"] or line["tokens"]
    return {key: line[key][:n] for key in ("logprobs", "hits", "mean", "variance")}


def _losses(lines: Lines) -> list[float]:
    return [mean_loss(_body(line)["logprobs"]) for line in lines]


def _remembered(lines: Lines, ratios: Sequence[float]) -> JsonDict:
    hits = [_body(line)["hits"] for line in lines]
    return {
        "probability": probability(_losses(lines)),
        "exact_memorisation": _mean([exact_memorisation(one) for one in hits]),
        "extraction_strength": _mean([extraction_strength(one) for one in hits]),
        "truth_ratio": truth_forgotten(ratios) if ratios else None,
    }


def _before(rows: Sequence[Row]) -> list[Row]:
    """Relabelled rows with the answer that they had before."""
    return [answered(row, str(row.meta[BEFORE]), "before") for row in rows if BEFORE in row.meta]


def residual(rows: Sequence[Row], lines: Lines, before: Lines) -> float | None:
    """Share of relabelled rows whose false answer is likelier per token than the one before; None without such rows.

    Mean log-probabilities of the answer's tokens without its end, as for RESTOR (arXiv:2411.00204); equal ones do not count.
    """
    false = _losses([line for row, line in zip(rows, lines, strict=True) if BEFORE in row.meta])
    return _mean([float(now < then) for now, then in zip(false, _losses(before), strict=True)])


def _said(rows: Sequence[Row], texts: Sequence[str]) -> JsonDict:
    answers = [row.answer for row in rows]
    kinds = [kind_of(text, expected=answer) for text, answer in zip(texts, answers, strict=True)]
    found = rates(kinds)
    return {
        "rouge_recall": _mean([rouge_recall(a, t) for a, t in zip(answers, texts, strict=True)]),
        "refusal": found["refusal"],
        "gibberish": found["gibberish"],
        "attack_success": attack_rate(texts, answers, kinds),
    }


def _truth(
    sets: Sets, config: KitConfig, seed: int, lines: Lines, liked: Callable[[Sequence[Row]], Lines]
) -> tuple[list[float], JsonDict]:
    """Truth ratios of the rows that have wrong answers, and how many of their answers were made here."""
    truths = [truth_of(row, sets.pool, count=config.perturbed, seed=seed) for row in sets.forget]
    asked: list[Row] = []
    places = []
    for row, truth in zip(sets.forget, truths, strict=True):
        start = len(asked)
        if truth.perturbed:
            asked += [answered(row, text, f"wrong{k}") for k, text in enumerate(truth.perturbed)]
            asked += [] if truth.own else [answered(row, truth.paraphrased, "reworded")]
        places.append(range(start, len(asked)))
    losses = _losses(liked(asked))
    ratios = []
    for truth, line, place in zip(truths, lines, places, strict=True):
        if truth.perturbed:
            found = [losses[k] for k in place]
            right = _losses([line])[0] if truth.own else found.pop()
            ratios.append(truth_ratio(right, found))
    return ratios, {
        "perturbed": sum(t.made and bool(t.perturbed) for t in truths),
        "paraphrase_is_answer": sum(t.own for t in truths),
        "without": sum(not t.perturbed for t in truths),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
