import importlib
import subprocess
import sys

import pytest

from mcit.core.errors import ConfigError
from mcit.core.optional import missing, needed, unseen


def test_a_library_that_is_there_is_handed_out():
    assert needed("json", where="x").loads("[1]") == [1] and missing("json", where="x") == []


def test_a_missing_library_names_the_setting_and_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes") as error:
        needed("bitsandbytes", where="base.dtype")
    assert error.value.where == "base.dtype" and "install bitsandbytes" in error.value.fix
    found = missing("bitsandbytes", where="stages[1].optim.kind")
    assert [p.where for p in found] == ["stages[1].optim.kind"] and "optim.kind: adamw" in found[0].fix


def test_a_library_is_unseen_in_the_block_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with unseen("wave"), pytest.raises(ImportError):
        importlib.import_module("wave")
    assert importlib.import_module("wave").open
    loaded = sys.modules["wave"]
    with unseen("wave"):
        assert importlib.import_module("wave") is loaded
    assert sys.modules["wave"] is loaded


def test_adapters_come_without_the_compiler_that_bitsandbytes_loads():
    code = "import sys, mcit.models.adapters, mcit.engine.loralinear\n"
    code += "sys.exit('bitsandbytes' in sys.modules or 'torch._inductor.compile_fx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
