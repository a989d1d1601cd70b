"""Test rows that the published rule cannot judge are found before anything is trained."""

import json
import sys
import types

import pytest

from mcit.core.errors import PlanError
from tests.fakes.bench import plan_of

ROW = {"question_id": "q1", "text": "What is it?", "answer": "cat"}
TRAIN = {"id": "t1", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "you"}]}


def recipe_of(folder, rows, *, scorer="vqa", name="words"):
    (folder / "train.json").write_text(json.dumps([TRAIN]))
    (folder / "test.json").write_text(json.dumps(rows))
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\ntask: {name}\nsources:"
        " [{kind: llava, path: train.json}, {kind: llava, path: test.json, split: test}]\n"
        f"eval: {{scorer: {scorer}, style: {'letter' if scorer == 'choice' else 'phrase'}}}\n"
    )
    return str(path)


def plan(recipe, **eval_):
    return plan_of(stages=[{"recipe": recipe}], eval={"rows": 8, "batch": 4, **eval_})


def test_one_answer_is_not_ten(tmp_path):
    """A single text used to become single-reference matching without a word."""
    recipe = recipe_of(tmp_path, [ROW, {**ROW, "question_id": "q2", "answer": ["cat"] * 9}])
    with pytest.raises(PlanError) as error:
        plan(recipe)
    assert "test.json:1:q1" in error.value.where
    assert "1 reference answer, the published rule takes ten (and 1 more of 2 rows)" in error.value.what
    assert "eval.mode: fixed" in error.value.fix


def test_ten_answers_are_ten(tmp_path):
    assert not [n for n in plan(recipe_of(tmp_path, [{**ROW, "answer": ["cat"] * 10}])).notes if "reference" in n]


def test_where_the_matrix_takes_the_fixed_rule_it_is_a_note(tmp_path):
    found = plan(recipe_of(tmp_path, [ROW]), mode="fixed")
    assert [n for n in found.notes if "1 reference answer" in n]


def test_rows_that_are_not_scored_do_not_count(tmp_path):
    rows = [{**ROW, "answer": ["cat"] * 10}, {**ROW, "question_id": "q2"}]
    assert plan(recipe_of(tmp_path, rows), rows=1)
    assert plan(recipe_of(tmp_path, rows), tasks="none")
    with pytest.raises(PlanError, match="reference answer"):
        plan(recipe_of(tmp_path, rows), rows=2)


def test_science_needs_pictures(tmp_path):
    with pytest.raises(PlanError, match="has no picture"):
        plan(recipe_of(tmp_path, [ROW], scorer="sci"))


def test_vllm_needs_its_package_and_whole_weights(tmp_path, monkeypatch):
    ten = recipe_of(tmp_path, [{**ROW, "answer": ["cat"] * 10}])
    with pytest.raises(PlanError) as error:
        plan(ten, backend="vllm")
    assert "mcit[vllm]" in error.value.fix
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    assert plan(ten, backend="vllm") and plan(ten, backend="vllm", tasks="none")
    kept = {"adapter": {"rank": 4, "alpha": 8, "carry": "keep"}}
    with pytest.raises(PlanError, match="not merged"):
        plan_of(stages=[{"recipe": ten, **kept}], eval={"backend": "vllm"})
    with pytest.raises(PlanError, match="base.dtype is nf4"):
        plan_of(stages=[{"recipe": ten}], eval={"backend": "vllm"}, base={"family": "tiny", "dtype": "nf4"})


LISTED = {**ROW, "text": "What is it?\nA. a cat\nB. a dog", "answer": "A"}


def test_options_are_chosen_only_where_there_are_some(tmp_path):
    """By the scorer, the style and what the rows state; a task without any is noted, a run without any refused."""
    free = tmp_path / "free"
    free.mkdir()
    words, letters = (
        recipe_of(free, [ROW], scorer="exact"),
        recipe_of(tmp_path, [LISTED], scorer="choice", name="letters"),
    )
    with pytest.raises(PlanError) as error:
        plan(words, options="forward")
    assert error.value.where == "eval.options: forward" and "words (scorer exact)" in error.value.what
    assert plan(words, options="forward", tasks="none") and plan(words)
    found = plan_of(stages=[{"recipe": words}, {"recipe": letters}], eval={"options": "forward"})
    noted = [note for note in found.notes if "eval.options" in note]
    assert len(noted) == 1 and "words" in noted[0] and "answers are written" in noted[0]
    assert not [note for note in plan(letters, options="forward").notes if "eval.options" in note]


def test_options_are_not_chosen_under_a_filter_that_guards(tmp_path):
    letters = recipe_of(tmp_path, [LISTED], scorer="choice", name="letters")
    with pytest.raises(PlanError, match="filter 'guard' acts while an answer is written"):
        plan(letters, options="forward", filters=["guard"])


def test_options_that_cannot_be_answers_are_noted(tmp_path):
    """With the row and why; only where options are chosen."""
    named = {**ROW, "meta": {"choices": ["cat", "dog"]}}
    spoilt = {**ROW, "question_id": "q2", "meta": {"choices": ["cat", "<image> left"]}}
    recipe = recipe_of(tmp_path, [named, spoilt], scorer="exact")
    (note,) = [note for note in plan(recipe, options="forward").notes if "cannot be an answer" in note]
    assert "test.json:1:q2" in note and "1 of 2 rows" in note
    assert not [note for note in plan(recipe).notes if "cannot be an answer" in note]
