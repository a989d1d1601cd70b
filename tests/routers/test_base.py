"""Routers: what a class of one owes."""

import inspect

import pytest

from mcit.core import lookup
from mcit.core.config import parse
from mcit.routers.base import Router, RouterConfig


@pytest.mark.parametrize("name", lookup.known("routers"))
def test_settings_are_typed_and_route_is_a_static_function(name):
    cls = lookup.class_of("routers", name, base=Router)
    assert issubclass(cls.Config, RouterConfig) and isinstance(inspect.getattr_static(cls, "route"), staticmethod)
    _, problems = parse(cls.Config, {"no_such_key": 1})
    assert problems[0].what == "unknown key"


def test_the_base_joins_nothing_and_keeps_no_state():
    router = Router(RouterConfig())
    assert router.join(["a"], None) is None and router.state_dict() == {} and router.state_version == 1
    with pytest.raises(NotImplementedError):
        Router.route([], [], {}, {}, None)
