"""The record of the forgetting kit, from likelihoods and answers that are on disk."""

import json

import pytest

from mcit.core.errors import StateError
from mcit.evals import membership
from mcit.evals.kit import areas, mean_losses, read_kit, residual
from mcit.evals.likelihood import read_likelihoods
from mcit.evals.memorisation import mean_loss, probability, truth_forgotten
from mcit.evals.predictions import read_predictions
from tests.fakes.rows import row

STAGE = "02-forget-red"


def test_the_record_is_what_its_files_say(forgetful):
    folder = forgetful / "kit" / "after-02" / STAGE
    record = read_kit(folder)
    lines = read_likelihoods(folder / "forget")
    losses = [mean_loss(line["logprobs"][: line["body"]]) for line in lines]
    assert len(lines) == 5 and record["forget"]["probability"] == pytest.approx(probability(losses))
    assert mean_losses(folder)["forget"] == losses
    hits = [sum(line["hits"][: line["body"]]) / line["body"] for line in lines]
    assert record["forget"]["exact_memorisation"] == pytest.approx(sum(hits) / 5)
    assert (
        record["forget"]["truth_ratio"] == pytest.approx(truth_forgotten(record["truth"])) and len(record["truth"]) == 5
    )
    assert len(read_likelihoods(folder / "truth")) == 15 and record["made"]["perturbed"] == 5
    held = mean_losses(folder)["holdout"]
    assert record["membership"]["loss"] == pytest.approx(membership.auc(losses, held))
    base = mean_losses(forgetful / "kit" / "base" / STAGE)
    pairs = [
        [a - b for a, b in zip(now, then, strict=True)]
        for now, then in ((losses, base["forget"]), (held, base["holdout"]))
    ]
    assert record["membership"]["reference"] == pytest.approx(membership.auc(*pairs))
    assert set(record["membership"]) == {"loss", "zlib", "min_k", "min_k_plus", "reference", "gradnorm"}
    assert len(read_predictions(folder / "answers")) == 5 and 0 <= record["forget"]["rouge_recall"] <= 1
    assert set(record["probability"]) == {"word-others"}  # word holds the forgotten rows and is no measure of utility
    assert record["four_bit"]["probability"] != record["forget"]["probability"]
    assert record["near"]["same_question"]["n"] == 5 and record["near"]["decoupled"]["n"] == 0


def test_a_damaged_record_is_named(forgetful, tmp_path):
    (tmp_path / "kit.json").write_text(
        (forgetful / "kit" / "after-02" / STAGE / "kit.json").read_text().replace("0", "1", 1)
    )
    with pytest.raises(StateError, match="kit.json"):
        read_kit(tmp_path)
    assert read_kit(tmp_path / "nothing") is None


def line(*logprobs):
    n = len(logprobs)
    return {
        "logprobs": [*logprobs, -9.0],
        "hits": [True] * (n + 1),
        "mean": [0.0] * (n + 1),
        "variance": [1.0] * (n + 1),
        "body": n,
        "tokens": n + 1,
    }


def test_residual_corruption_by_hand():
    """False -.7 against true -1 counts, -2 against -1 does not; a row that was not relabelled is no part of it."""
    false, plain = row("q", "owl", meta={"answer_before": "penguin"}), row("q", "cat")
    rows, lines = [false, plain, false], [line(-0.7), line(-0.1), line(-2.0)]
    assert residual(rows, lines, [line(-1.0), line(-1.0)]) == 0.5
    assert residual([false], [line(-0.7)], [line(-1.0)]) == 1.0 and residual([false], [line(-1.0)], [line(-1.0)]) == 0.0
    assert residual([plain], [line(-1.0)], []) is None


def test_areas_by_hand_leave_the_end_token_out():
    rows = [row("q", "the cat sat on the mat")] * 3
    parts = {
        "forget": (rows, [line(-1.0), line(-2.0), line(-3.0)]),
        "holdout": (rows, [line(-2.5), line(-4.0), line(-5.0)]),
    }
    assert areas(parts, ["loss", "zlib", "min_k", "min_k_plus"], {}, {}) == dict.fromkeys(
        ["loss", "zlib", "min_k", "min_k_plus"], pytest.approx(8 / 9)
    )
    assert "reference" not in areas(parts, ["reference"], {}, {})
    reference = {"forget": [1.0, 2.0, 3.0], "holdout": [2.0, 3.0, 4.0]}
    assert areas(parts, ["reference"], reference, {})["reference"] == 1.0
    assert areas(parts, ["gradnorm"], {}, {"forget": [1, 2], "holdout": [0, 0]})["gradnorm"] == 0.0


def test_every_stage_from_before_is_measured_and_the_ledger_says_so(forgetful):
    folders = sorted(p.name for p in (forgetful / "kit").iterdir())
    assert folders == ["after-01", "after-02", "after-03", "base"]
    events = [json.loads(line) for line in (forgetful / "ledger.jsonl").read_text().splitlines()]
    assert [e["after"] for e in events if e["event"] == "kit"] == [0, 1, 2, 3]
