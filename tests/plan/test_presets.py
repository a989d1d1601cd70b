"""Files that a config names by `use`."""

import pytest

from mcit.core.errors import ConfigError
from mcit.plan.presets import expanded, preset_file, read_preset


def test_one_methods_settings_are_overwritten():
    assert expanded({"name": "l2", "weight": 1}, {"weight": 2}, "m") == ([{"name": "l2", "weight": 2}], [])


def test_of_a_list_a_setting_goes_to_every_method_that_states_it():
    content = {"methods": [{"name": "a", "x": 1, "y": 1}, {"name": "b", "x": 2}]}
    assert expanded(content, {"x": 5, "b": {"z": 3}}, "m") == (
        [{"name": "a", "x": 5, "y": 1}, {"name": "b", "x": 5, "z": 3}],
        [],
    )
    assert content["methods"][0]["x"] == 1


def test_an_unknown_key_is_named_with_the_nearest():
    content = read_preset(preset_file("gs_lora"))
    _, (problem,) = expanded(content, {"alpah": 1}, "stages[0].methods[0]")
    assert problem.where == "stages[0].methods[0].alpah" and "did you mean 'alpha'?" in problem.fix
    _, (problem,) = expanded(content, {"refusals": {"omega": 1}}, "m")
    assert "did you mean 'refusal'?" in problem.fix


@pytest.mark.parametrize(
    "text", ["weight: 1", "methods: []", "methods: [1]", "methods: [{weight: 1}]", "- 1", "methods: x"]
)
def test_a_file_without_a_method_is_refused(tmp_path, text):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(ConfigError, match="holds no settings of a method"):
        read_preset(tmp_path / "f.yaml")


def test_a_file_of_ones_own_may_hold_a_list(tmp_path):
    (tmp_path / "f.yaml").write_text("methods: [{name: l2, weight: 1}, {name: lwf}]")
    assert [m["name"] for m in read_preset(tmp_path / "f.yaml")["methods"]] == ["l2", "lwf"]


@pytest.mark.parametrize("other", ["feature_kd", "ewc", "l2"])
def test_combinations_of_the_rehearsal_free_study_plan(other):
    from tests.fakes.bench import plan_of

    plan = plan_of(stages=[{"recipe": "tiny/letter", "methods": [{"use": f"study_pred_kd_{other}"}]}])
    assert [spec.name for spec in plan.stages[0].methods] == ["pred_kd", other]
