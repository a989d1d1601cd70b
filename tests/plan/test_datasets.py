"""Data sets of a plan: tasks, what is forgotten, pools of methods."""

import json

import pytest

from mcit.core.errors import DataError
from mcit.core.types import MethodSpec
from mcit.data.rowfile import StoredRows
from mcit.methods.base import Method
from mcit.plan import datasets
from mcit.plan.plan import make_plan, parse_run
from mcit.plan.record import plan_json
from tests.fakes.bench import TINY
from tests.fakes.rows import llava


def config_of(*stages):
    config, problems = parse_run({**TINY, "stages": list(stages)})
    assert config is not None and not problems, problems
    return config


def test_each_recipe_is_built_once_and_shared():
    config = config_of({"recipe": "tiny/letter"}, {"recipe": "tiny/word", "forget": "tiny/letter"})
    stages, problems = datasets.build_tasks(config, announce=None)
    assert not problems
    assert stages[0].tasks[0] == stages[1].beside["forget"][0]
    assert stages[0].beside["forget"] == stages[1].beside["holdout"] == ()


def test_rows_are_compared_only_where_some_are_left_out(monkeypatch):
    """Before, every plan parsed every training row: 20 s of a core for 665,000."""
    config = config_of({"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"})
    datasets.build_tasks(config, announce=None)

    def read(self):
        raise AssertionError("all rows are read")

    monkeypatch.setattr(StoredRows, "__iter__", read)
    stages, problems = datasets.build_tasks(config, announce=None)
    assert not problems and [task.name for stage in stages for task in stage.tasks] == ["letter", "yesno"]
    with pytest.raises(AssertionError, match="all rows are read"):
        datasets.build_tasks(config.model_copy(update={"without": ["tiny/word"]}), announce=None)


def test_two_recipes_of_one_task_name_are_refused(tmp_path):
    from mcit.data.recipe import find_recipe

    other = tmp_path / "other.yaml"
    other.write_text(find_recipe("tiny/word").read_text().replace("seed: 1", "seed: 9"))
    config = config_of({"recipe": "tiny/word"}, {"recipe": "tiny/letter", "forget": str(other)})
    _, problems = datasets.build_tasks(config, announce=None)
    assert len(problems) == 1 and "both define task 'word'" in problems[0].what


def test_a_recipe_that_cannot_be_built_names_stage_and_key(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: bad\ntask: bad\nsources: [{kind: llava, path: nowhere.json}]\n")
    config = config_of({"recipe": "tiny/word", "forget": str(bad)})
    with pytest.raises(DataError) as caught:
        make_plan(config)
    assert caught.value.problems[0].where.startswith(f"stages[0].forget {bad}")
    assert "nowhere.json" in str(caught.value)


def test_what_was_dropped_and_warned_of_is_in_the_plan(tmp_path):
    rows = [llava("a", "q1"), llava("b", "q2"), {"id": "c"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    recipe = tmp_path / "some.yaml"
    source = "sources: [{kind: llava, path: rows.json}]"
    recipe.write_text(f"name: some\ntask: some\nallow_bad: 1\nexpect: {{train: 7}}\n{source}\n")
    notes = make_plan(config_of({"recipe": str(recipe)})).notes
    assert [note for note in notes if "1 bad row(s) dropped" in note and "rows.json:1:c: the row has no" in note]
    assert [note for note in notes if note.startswith(f"{recipe}: train: ") and "7" in note], notes


class Pooled(Method):
    name = "pooled"

    def recipes(self):
        return ("tiny/yesno",)


def test_pools_of_methods_are_built_and_read(monkeypatch):
    monkeypatch.setattr("mcit.methods.compose.make", lambda spec: Pooled(spec.config))
    stages = [datasets.StageData(()), datasets.StageData(())]
    problems = datasets.build_pools(stages, [[], [MethodSpec("pooled", None)]], announce=None)
    assert not problems and stages[0].pools == ()
    assert [task.recipe for task in stages[1].pools] == ["tiny/yesno"]


def test_forgotten_data_is_in_the_plan_but_no_column_of_the_matrix():
    forgets = {"recipe": "tiny/yesno", "forget": "tiny/word", "methods": [{"use": "gs_lora"}]}
    plan = make_plan(config_of({"recipe": "tiny/letter"}, forgets))
    assert [task.name for task in plan.tasks] == ["letter", "yesno"]
    assert [task.name for task in plan.forget_tasks] == ["word"]
    assert [task.recipe for task in datasets.recipes_of(plan)] == ["tiny/letter", "tiny/yesno", "tiny/word"]
    content = plan_json(plan)
    assert set(content["recipes"]) == {"tiny/letter", "tiny/yesno", "tiny/word"}
    assert content["forget_tasks"] == ["word"] and content["stages"][1]["forget"] == ["word"]
