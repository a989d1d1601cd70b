import importlib
import sys

import pytest

from mcit.core import lookup
from mcit.core.errors import ConfigError
from mcit.core.files import sha256_file
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


def test_the_digest_of_a_source_follows_the_file(tmp_path, monkeypatch):
    for text in ("class M:\n    pass\n", "class M:\n    x = 1\n"):
        (tmp_path / "digested.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "digested", raising=False)
        importlib.invalidate_caches()
        made = importlib.import_module("digested").M
        assert lookup.source_digest(made) == sha256_file(tmp_path / "digested.py")
    assert lookup.source_digest(type("M", (), {"__module__": "nowhere"})) == ""
