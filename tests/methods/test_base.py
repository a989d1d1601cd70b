import pytest

from mcit.core.errors import StateError
from mcit.methods.base import HOOKS, Method


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


def test_unknown_state_is_refused():
    cls = type("X", (Method,), {"name": "x"})
    with pytest.raises(StateError, match="unknown state"):
        cls(cls.Config()).load_state_dict({"a": 1})
