import sys
from types import ModuleType

import pytest

from mcit import api
from mcit.core.callable import callable_package


def test_a_call_is_one_of_the_function_of_its_name(monkeypatch):
    monkeypatch.setattr(api, "sums", lambda a, *, b: a + b, raising=False)
    module = ModuleType("somewhere.sums")
    monkeypatch.setitem(sys.modules, "somewhere.sums", module)
    with pytest.raises(TypeError):
        module(1, b=2)
    callable_package("somewhere.sums")
    assert module(1, b=2) == 3
