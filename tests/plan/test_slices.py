"""Slices in a plan: what is scored when, and what cannot be a slice."""

import pytest

from mcit.core.errors import PlanError
from mcit.plan.record import plan_json
from mcit.plan.slices import slices_due
from mcit.train.sequence import due
from tests.fakes.bench import plan_of
from tests.fakes.slices import recipe

SEEN = {"tasks": "seen"}


def stages(**slices):
    return [{"recipe": "tiny/yesno"}, {"recipe": "tiny/letter", "slices": slices}, {"recipe": "tiny/word"}]


def test_what_is_scored_before_and_after(tmp_path):
    words = recipe(tmp_path, "words", "tests.fakes.slices:rephrased")
    near = recipe(tmp_path, "near", "shapes-letter", seed=9)
    plan = plan_of(stages=stages(neighbourhood=[near], rephrased=[words], retention=["tiny/word"]), eval=SEEN)
    assert [[t.name for t in slices_due(plan, k)] for k in range(4)] == [
        [],
        ["near", "word"],
        ["near", "word", "words"],
        [],
    ]
    assert [t.name for t in due(plan, 1)] == ["yesno", "near", "word"]
    assert {t.name for t in due(plan, 2)} == {"yesno", "letter", "near", "word", "words"}
    assert [t.name for t in plan.slice_tasks] == ["near", "words"]
    record = plan_json(plan)
    assert record["tasks"] == ["yesno", "letter", "word"] and "near" in record["scorers"]
    assert record["stages"][1]["slices"] == {
        "neighbourhood": ["near"], "rephrased": ["words"], "retention": ["word", "yesno"],
    }  # fmt: skip
    assert record["stages"][0]["slices"] == {"neighbourhood": [], "rephrased": [], "retention": []}


def test_rephrased_rows_that_equal_the_original_are_refused(tmp_path):
    """24 rows, ten of them named; with other seeds the pictures are others, but not their names."""
    same = recipe(tmp_path, "same", "tests.fakes.slices:equal")
    with pytest.raises(PlanError) as caught:
        plan_of(stages=stages(rephrased=[same]), eval=SEEN)
    problems = caught.value.problems
    assert len(problems) == 11 and "asks the same as" in problems[0].what and "14 more rows" in problems[-1].what
    assert problems[0].where.startswith("stages[1].slices.rephrased: ")


def test_what_cannot_be_a_slice(tmp_path):
    train = recipe(tmp_path, "train-only", "shapes-letter", split="train")
    with pytest.raises(PlanError, match="has no test rows, so the slice cannot be measured"):
        plan_of(stages=stages(neighbourhood=[train]), eval=SEEN)
    with pytest.raises(PlanError, match="is what the stage trains"):
        plan_of(stages=stages(retention=["tiny/letter"]), eval=SEEN)
    with pytest.raises(PlanError, match="nothing is scored in this run"):
        plan_of(stages=stages(retention=["tiny/word"]))
