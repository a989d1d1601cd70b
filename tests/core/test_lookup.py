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
        lookup.part_of("methods", "nope")


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


def test_files_by_path(tmp_path):
    """One class, a named one, several, and one that fails when it is imported."""
    text = "from mcit.methods.base import Method\nclass M(Method):\n    pass\n"
    (tmp_path / "one.py").write_text(text)
    (tmp_path / "two.py").write_text(text + "class N(M):\n    pass\n")
    (tmp_path / "bad.py").write_text("import nowhere_at_all\n")
    one = lookup.class_of("methods", f"{tmp_path}/one.py", base=Method)
    assert one is lookup.class_of("methods", f"{tmp_path}/one.py:M", base=Method)
    assert lookup.source_digest(one) == sha256_file(tmp_path / "one.py")
    assert lookup.class_of("methods", f"{tmp_path}/two.py:N", base=Method).__name__ == "N"
    with pytest.raises(ConfigError, match="must hold exactly one Method"):
        lookup.class_of("methods", f"{tmp_path}/two.py", base=Method)
    with pytest.raises(ConfigError, match="has no 'L'"):
        lookup.class_of("methods", f"{tmp_path}/two.py:L", base=Method)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match="cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"
        ):
            lookup.class_of("methods", f"{tmp_path}/bad.py", base=Method)
    assert "there is no file" in lookup.missing("methods", f"{tmp_path}/none.py:M", where="x").what


def test_paths_are_anchored_where_plug_ins_are_named(tmp_path):
    given = {"methods": [{"name": "./a.py:A", "path": "./b.py"}], "filters": ["../c.py", "strip"], "use": "./d.yaml"}
    below = lookup.anchored({**given, "family": "mod:F", "generate": {"name": "./e.py"}}, tmp_path / "x")
    assert below["methods"] == [{"name": f"{tmp_path}/x/a.py:A", "path": "./b.py"}]
    assert below["filters"] == [f"{tmp_path}/c.py", "strip"] and below["use"] == f"{tmp_path}/x/d.yaml"
    assert below["family"] == "mod:F" and below["generate"] == {"name": f"{tmp_path}/x/e.py"}


def test_a_family_from_elsewhere(tmp_path, monkeypatch):
    """Before, ``module:Class`` crashed for families: the name was imported as a module of mcit."""
    from mcit.core.schema import BaseConfig
    from mcit.models.load import materialize, pending
    from tests.fakes.models import tiny_path

    (tmp_path / "fam.py").write_text(
        "class Family:\n"
        "    @staticmethod\n"
        "    def materialize(base, *, announce=None):\n"
        f"        return {str(tiny_path())!r}\n"
        "    @staticmethod\n"
        "    def pending(base):\n"
        "        return None\n"
    )
    base = BaseConfig(family=f"{tmp_path}/fam.py:Family")
    assert materialize(base) == tiny_path() and pending(base) is None
    monkeypatch.syspath_prepend(str(tmp_path))
    assert materialize(BaseConfig(family="fam:Family")) == tiny_path()


def test_the_digest_of_a_source_covers_what_it_imports_from_its_package(tmp_path, monkeypatch):
    home = tmp_path / "digested_package"
    (home / "below").mkdir(parents=True)
    for folder in (home, home / "below"):
        (folder / "__init__.py").write_text("")
    (home / "part.py").write_text(
        "import json\nfrom digested_package.below.formulas import f\n\n\nclass Part:\n    pass\n"
    )
    (home / "below" / "formulas.py").write_text("from digested_package.below import sums\n\nf = sums.f\n")
    (home / "below" / "sums.py").write_text("def f():\n    return 1\n")
    (home / "other.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    part = importlib.import_module("digested_package.part").Part
    importlib.import_module("digested_package.other")
    before = lookup.source_digest(part)
    (home / "other.py").write_text("x = 2\n")
    assert lookup.source_digest(part) == before
    (home / "below" / "sums.py").write_text("def f():\n    return 2\n")
    assert lookup.source_digest(part) != before
