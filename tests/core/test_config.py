import pytest

from mcit.core.config import apply_overrides, load_yaml, parse, suggestion
from mcit.core.errors import ConfigError
from mcit.core.schema import AdapterConfig, RunConfig

GOOD = {"name": "x", "stages": [{"recipe": "r"}]}


def problems(**changes):
    config, found = parse(RunConfig, {**GOOD, **changes})
    assert (config is None) == bool(found)
    return found


def test_unknown_key_is_refused_with_the_nearest_name():
    (found,) = problems(stages=[{"recipe": "r", "optim": {"warm_up": 3}}])
    assert found.where == "stages[0].optim.warm_up" and found.what == "unknown key"
    assert "did you mean 'warmup'?" in found.fix


def test_all_problems_are_shown_together_with_their_paths():
    found = problems(seed="x", engine={"micro_batch": 0}, stages=[{"recipe": "r", "epochs": -1}, {}])
    assert {p.where for p in found} == {"seed", "engine.micro_batch", "stages[0].epochs", "stages[1].recipe"}
    assert any("got 'x'" in p.what for p in found)


def test_infinite_and_nan_values_are_refused():
    assert problems(stages=[{"recipe": "r", "optim": {"lr": float("inf")}}])
    assert problems(stages=[{"recipe": "r", "optim": {"lr": float("nan")}}])


def test_config_is_frozen():
    config, _ = parse(RunConfig, GOOD)
    with pytest.raises(Exception, match="frozen"):
        config.seed = 3


def test_full_fine_tuning_has_carry_none():
    assert AdapterConfig(kind="none").carry == "none"
    with pytest.raises(Exception, match="does not go with"):
        AdapterConfig(kind="none", carry="merge")
    with pytest.raises(Exception, match="does not go with"):
        AdapterConfig(carry="none")


def test_overrides_reach_into_dicts_and_lists():
    data = {"a": {"b": [1, {"c": 2}]}}
    assert apply_overrides(data, ["a.b.1.c=5", "a.d.e=1e-4", "f=[1, x]"]) == {
        "a": {"b": [1, {"c": 5}], "d": {"e": 1e-4}},
        "f": [1, "x"],
    }
    assert data == {"a": {"b": [1, {"c": 2}]}}


@pytest.mark.parametrize("item", ["a", "=3", "a.b.9=1", "a.b.0.x=1", "a=[1"])
def test_bad_overrides_are_refused(item):
    with pytest.raises(ConfigError) as error:
        apply_overrides({"a": {"b": [1]}}, [item])
    assert "--set" in str(error.value)


def test_yaml_errors_name_file_and_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb: [1\n")
    with pytest.raises(ConfigError) as error:
        load_yaml(path)
    assert f"{path}:" in str(error.value)
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigError, match="'a' is given twice") as error:
        load_yaml(path)
    assert f"{path}:3" in str(error.value)
    with pytest.raises(ConfigError, match="does not exist"):
        load_yaml(tmp_path / "none.yaml")


def test_yaml_reads_plain_exponents_as_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1e-4\nb: 2E5\nc: e5\n")
    assert load_yaml(path) == {"a": 1e-4, "b": 2e5, "c": "e5"}


def test_yaml_builds_no_objects(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError):
        load_yaml(path)


def test_suggestion():
    assert suggestion("relpay", ["replay", "l2"]) == "did you mean 'replay'?"
    assert suggestion("zzz", ["b", "a"]) == "known: a, b"
