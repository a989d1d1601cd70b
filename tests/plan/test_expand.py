"""Stages from a sequence: ordinary ones, with defaults, names and every check; problems at planning."""

import pytest

from mcit.core.errors import ConfigError
from mcit.plan.plan import parse_run, read_config
from mcit.plan.references import reference_problems
from mcit.sequences.base import StageSequence
from tests.fakes.bench import TINY, plan_of

ROUNDS = {"generate": "rounds", "recipes": ["tiny/letter", "tiny/yesno"], "rounds": 2}


class Broken(StageSequence):
    def stages(self, seed):
        raise ConfigError("there are no concepts", where="x", fix="add one")


class Empty(StageSequence):
    def stages(self, seed):
        return []


def test_stages_are_ordinary_ones():
    plan = plan_of(stages=ROUNDS)
    assert [stage.index for stage in plan.stages] == [1, 2, 3, 4]
    assert len({stage.name for stage in plan.stages}) == 4 and plan.stages[0].steps == 4
    assert plan.stages[0].adapter.rank == 4  # defaults lie under generated stages
    again, _ = parse_run({**TINY, "stages": ROUNDS})
    assert again.stages == plan.config.stages
    kept, problems = parse_run(again.model_dump(mode="json"))  # what a run keeps: the list
    assert not problems and kept == again
    other, _ = parse_run({**TINY, "stages": {**ROUNDS, "rounds": 8}, "seed": 4})
    same, _ = parse_run({**TINY, "stages": {**ROUNDS, "rounds": 8}, "seed": 5})
    assert [s.recipe for s in other.stages] != [s.recipe for s in same.stages]


@pytest.mark.parametrize(
    ("stages", "where", "what"),
    [
        ({"generat": "rounds"}, "stages.generate", "is required"),
        ({"generate": "round"}, "stages.generate", "there is no 'round'"),
        ({"generate": "rounds", "recipes": []}, "stages.recipes", "at least 1 item"),
        ({"generate": "rounds", "recipe": ["a"]}, "stages.recipe", "unknown key"),
        ({"generate": f"{__name__}:Broken"}, f"stages ({__name__}:Broken)", "there are no concepts"),
        ({"generate": f"{__name__}:Empty"}, "stages.generate", "makes no stages"),
    ],
)
def test_what_cannot_be_expanded_is_named(stages, where, what):
    config, problems = parse_run({**TINY, "stages": stages})
    assert config is None
    assert any(p.where == where and what in p.what for p in problems), problems
    _, problems = parse_run({**TINY, "stages": ROUNDS, "seed": "x"})
    assert problems[0].where == "seed"


def test_a_wrong_recipe_of_a_generated_stage_is_named_by_its_place():
    config, problems = parse_run({**TINY, "stages": {"generate": "rounds", "recipes": ["tiny/lettr"]}})
    assert config is not None and not problems
    (found,) = reference_problems(config)
    assert found.where == "stages[0].recipe" and "tiny/lettr" in found.what


def test_no_recipe_at_all_is_refused():
    """Before, ``recipe: []`` with ``epochs: 0`` planned cleanly."""
    for recipe in ([], "", [""]):
        _, problems = parse_run({**TINY, "stages": [{"recipe": recipe, "epochs": 0}]})
        assert [(p.where, p.what.split(" (")[0]) for p in problems] == [
            ("stages[0].recipe", "name at least one recipe")
        ]


def test_files_are_found_beside_the_config(tmp_path, monkeypatch):
    """A method's settings, its code and a sequence named by relative paths; the run keeps absolute ones."""
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "mine.py").write_text(
        "from mcit.methods.base import Method\n"
        "from mcit.core.config import MethodConfig\n"
        "class Mine(Method):\n"
        "    class Config(MethodConfig):\n"
        "        weight: float = 1.0\n"
    )
    (tmp_path / "plug" / "mine.yaml").write_text("name: ./mine.py:Mine\nweight: 0.5\n")
    (tmp_path / "plug" / "seq.py").write_text(
        "from mcit.sequences.base import StageSequence\n"
        "class Two(StageSequence):\n"
        "    def stages(self, seed):\n"
        "        return [{'recipe': 'tiny/letter', 'methods': [{'use': '%s', 'weight': 0.25}]}] * 2\n"
        % (tmp_path / "plug" / "mine.yaml")
    )
    text = "name: x\nbase: {family: tiny, dtype: fp32}\nstages: {generate: ./plug/seq.py}\n"
    (tmp_path / "run.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "plug")  # paths are relative to the config, not to where one stands
    config, _ = read_config(str(tmp_path / "run.yaml"))
    assert [stage.methods for stage in config.stages] == [
        [{"name": f"{tmp_path}/plug/mine.py:Mine", "weight": 0.25}],
    ] * 2
    (tmp_path / "run.yaml").write_text(text.replace("seq.py", "gone.py"))
    with pytest.raises(ConfigError, match="there is no file .*gone.py"):
        read_config(str(tmp_path / "run.yaml"))
    _, problems = parse_run({**TINY, "stages": [{"recipe": "tiny/letter", "methods": [{"use": "/nowhere/m.yaml"}]}]})
    assert problems[0].where == "stages[0].methods[0].use" and "no file" in problems[0].what
