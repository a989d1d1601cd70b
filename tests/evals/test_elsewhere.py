"""Answers made outside a run, scored by its rules."""

import json
from pathlib import Path

import pytest

from mcit.core.errors import ConfigError, DataError, StateError
from mcit.core.files import read_json
from mcit.data.build import build
from mcit.data.folder import DataFolder
from mcit.data.recipe import find_recipe, load_recipe
from mcit.evals.elsewhere import read_answers, score_elsewhere
from tests.fakes.run_dir import create, plan_record

LIMIT = 6


@pytest.fixture(scope="module")
def rows(cache):
    return DataFolder.open(build(load_recipe(find_recipe("tiny/word")))).rows("test")[:LIMIT]


@pytest.fixture
def run(tmp_path, cache):
    recipes = {name: DataFolder.open(build(load_recipe(find_recipe(name)))) for name in ("tiny/letter", "tiny/word")}
    scorers = {folder.task: {"scorer": folder.eval.scorer, "style": folder.eval.style} for folder in recipes.values()}
    recipes = {name: folder.digest for name, folder in recipes.items()}
    create(tmp_path / "run", {**plan_record([["letter", "word"]]), "recipes": recipes, "scorers": scorers})
    return tmp_path / "run"


def written(folder, values, *, name="theirs v1.jsonl", lines=True):
    path = folder / name
    path.write_text("\n".join(json.dumps(v) for v in values) if lines else json.dumps(values))
    return path


def go(run, path, task="word"):
    return score_elsewhere(run, path, task=task, limit=LIMIT)


@pytest.mark.parametrize("lines", [True, False])
def test_the_score_is_the_scorers_own(run, rows, tmp_path, lines):
    """Four of six answers are the gold ones; ids may be under either key, in any order, with other keys beside."""
    values = [{"question_id": r.id, "text": r.answer if i < 4 else "no", "model_id": "x"} for i, r in enumerate(rows)]
    values[0] = {"id": rows[0].id, "prediction": f" {rows[0].answer}\n"}
    folder, score = go(run, written(tmp_path, values[::-1], lines=lines))
    assert folder == run / "evals" / "elsewhere" / "theirs-v1" / "word"
    assert score["strict"]["accuracy"] == pytest.approx(100 * 4 / 6) and score["n"] == 6
    assert score["mean_length"] is None and score["truncation_rate"] is None
    assert score["elsewhere"]["file"] == "theirs v1.jsonl"
    assert read_json(folder / "score.json")["strict"] == score["strict"]
    assert read_json(folder / "rows.json")["id"] == [r.id for r in rows]


def test_missing_unknown_and_repeated_ids_are_listed_together(run, rows, tmp_path):
    values = [{"question_id": r.id, "text": "x"} for r in rows[1:]] + [{"id": "ghost", "text": "x"}]
    values.append({"id": rows[1].id, "text": "y"})
    with pytest.raises(DataError) as error:
        go(run, written(tmp_path, values))
    whats = [p.what for p in error.value.problems]
    assert f"has no answer for: {rows[0].id} (1; 6 rows are scored)" in whats
    assert "answers ids that are no test row of the task: ghost (1; 6 rows are scored)" in whats
    assert f"answers more than once: {rows[1].id} (1; 6 rows are scored)" in whats
    assert not (run / "evals").exists()


def test_a_long_list_is_cut(run, rows, tmp_path):
    values = [{"id": r.id, "text": "x"} for r in rows] + [{"id": f"g{k}", "text": "x"} for k in range(30)]
    with pytest.raises(DataError) as error:
        go(run, written(tmp_path, values))
    assert "g19 and 10 more (30;" in error.value.what and "g20" not in error.value.what


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"id": ' + "9" * 5000 + "}", "is not JSON"),
        ("[1]", "is no answer"),
        ('{"id": "a"}', "is no answer"),
        ('{"id": "a", "text": 3}', "is no answer"),
        ('{"id": [1], "text": "x"}', "is no answer"),
    ],
)
def test_other_files_are_refused(tmp_path, text, says):
    (tmp_path / "f.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        read_answers(tmp_path / "f.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no regular file"):
        read_answers(Path("/dev/zero"))


def test_the_task_must_be_one_of_the_run(run, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'word'"):
        go(run, tmp_path / "f", task="wrod")
    with pytest.raises(ConfigError, match="whose are these answers"):
        go(run, tmp_path / "f", task=None)


def test_data_that_changed_is_refused(run, tmp_path):
    plan = read_json(run / "plan.json")
    create(run, {**plan, "recipes": {"tiny/word": "0" * 64}})
    with pytest.raises(StateError, match="has changed"):
        go(run, tmp_path / "f")
