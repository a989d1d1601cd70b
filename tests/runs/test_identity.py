from mcit.runs.identity import config_changes, differences, flatten, identity, layout_changes, minor, told
from tests.fakes.run_dir import environment, plan_content, resolved


def test_flatten_names_leaves():
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": [], "e": None}) == {"a.b[0]": 1, "a.b[1].c": 2, "d": [], "e": None}


def test_differences_are_told_old_to_new():
    found = differences({"a": 1, "b": [1], "gone": 3}, {"a": 2, "b": [1], "new": 4})
    assert found == {"a": (1, 2), "gone": (3, "not set"), "new": ("not set", 4)}
    assert told(found) == ["a: 1 -> 2", "gone: 3 -> not set", "new: not set -> 4"]
    assert told({"x": ("ab" * 32, None)}) == ["x: abababababab… -> None"]


def test_engine_and_checkpoint_are_not_identity():
    old, new = resolved(), resolved(seed=2, micro_batch=8)
    assert config_changes(old, new) == {"seed": (1, 2)}
    assert layout_changes(old, new) == {"engine.micro_batch": (4, 8)}


def test_only_minor_versions_count():
    assert minor("2.13.0+cpu") == minor("2.13.7") == "2.13"
    assert minor(None) is None
    plan = plan_content(resolved())
    same = differences(identity(plan, environment()), identity(plan, environment(torch="2.13.1", python="3.12.0")))
    assert same == {}
    other = differences(identity(plan, environment()), identity(plan, environment(torch="2.14.0", mcit="0.2.0")))
    assert other == {"version of torch": ("2.13", "2.14"), "version of mcit": ("0.1", "0.2")}


def test_recipes_method_state_and_base_count():
    plan = plan_content(resolved())
    other = plan_content(resolved(), base_sha256="1" * 64, recipes={"a": "digest-a", "b": "edited"})
    other["stages"][1]["method_state"] = {"l2": 2}
    found = differences(identity(plan, environment()), identity(other, environment()))
    assert set(found) == {"base_sha256", "recipe b", "state version of l2 in 02-b"}


def test_a_changed_source_of_a_method_is_named():
    before, after = ({**plan_content(resolved()), "sources": {"method l2": digest}} for digest in ("a" * 64, "b" * 64))
    found = differences(identity(before, environment()), identity(after, environment()))
    assert told(found) == ["source of method l2: aaaaaaaaaaaa… -> bbbbbbbbbbbb…"]
