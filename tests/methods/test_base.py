import pytest

from mcit.core.files import write_json
from mcit.core.tensorstore import HostTensors
from mcit.methods.base import HOOKS, Method
from mcit.methods.compose import MethodSet


def test_a_misspelt_hook_fails_at_class_creation_with_a_suggestion():
    with pytest.raises(TypeError, match="did you mean 'weight_penalty'"):
        type("X", (Method,), {"weigth_penalty": lambda self: None})
    with pytest.raises(TypeError, match="did you mean 'on_stage_end'"):
        type("X", (Method,), {"on_stage_ends": lambda self: None})
    type("X", (Method,), {"_on_helper": lambda self: None, "helper": lambda self: None})


def test_only_overridden_hooks_count():
    cls = type("X", (Method,), {"name": "x", "after_step": lambda self, ctx: None})
    method = cls(cls.Config())
    assert [h for h in HOOKS if method.overrides(h)] == ["after_step"]


def test_a_method_that_says_nothing_adds_nothing():
    """No rows to the task's order, no bytes to the plan's estimate, no stream, recipe or problem; every name trains."""
    cls = type("X", (Method,), {"name": "x"})
    method = cls(cls.Config())
    assert method.mixed_rows({"r": 24}) == 0
    assert method.state_bytes({"w": (3, 2)}, stages=2) == 0 and method.run_bytes({}, hidden=8) == 0
    assert method.streams(None) == {} and method.recipes() == () and method.check(None, None) == []
    assert method.select_trainable(frozenset("ab"), None) == frozenset("ab")


def test_state_of_version_1_is_taken_by_a_method_that_names_no_version(tmp_path):
    """What runs have on disk: a method that never changed its state says nothing of versions and goes on reading it."""
    cls = type("X", (Method,), {"name": "x"})
    (tmp_path / "x").mkdir()
    write_json(tmp_path / "x" / "state.json", {"state_version": 1, "state": {}})
    HostTensors().save(tmp_path / "x" / "tensors.safetensors")
    MethodSet([cls(cls.Config())]).load(tmp_path)
