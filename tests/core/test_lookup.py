import pytest

from mcit.core import lookup
from mcit.core.errors import ConfigError
from mcit.methods.base import Method


def test_name_is_the_file_name():
    assert lookup.class_of("methods", "l2", base=Method).name == "l2"
    assert {"l2", "lwf", "replay"} <= set(lookup.known("methods"))
    assert not {"base", "compose", "check", "__init__"} & set(lookup.known("methods"))


def test_missing_names_are_suggested_without_import():
    problem = lookup.missing("methods", "replya", where="here")
    assert problem.where == "here" and "did you mean 'replay'" in problem.fix
    with pytest.raises(ConfigError):
        lookup.module_of("methods", "nope")


def test_outside_classes(tmp_path, monkeypatch):
    (tmp_path / "mine_lookup.py").write_text(
        "from mcit.methods.base import Method\nclass M(Method):\n    name = 'm'\nX = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lookup.class_of("methods", "mine_lookup:M", base=Method).name == "m"
    with pytest.raises(ConfigError, match="is not a Method"):
        lookup.class_of("methods", "mine_lookup:X", base=Method)
    assert "PYTHONPATH" in lookup.missing("methods", "no_such_module:M", where="x").fix
