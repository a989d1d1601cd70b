"""Sequences: what a class of one owes."""

import pytest

from mcit.core import lookup
from mcit.core.config import parse
from mcit.sequences.base import StageSequence


def test_the_base_makes_nothing():
    with pytest.raises(NotImplementedError):
        StageSequence(StageSequence.Config()).stages(0)


@pytest.mark.parametrize("name", lookup.known("sequences"))
def test_settings_are_typed_and_refuse_unknown_keys(name):
    cls = lookup.class_of("sequences", name, base=StageSequence)
    _, problems = parse(cls.Config, {"no_such_key": 1})
    assert any(problem.what == "unknown key" for problem in problems)
