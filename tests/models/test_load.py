import json
import shutil
import sys

import pytest
import torch

from mcit.core.errors import ConfigError
from mcit.core.schema import BaseConfig
from mcit.models.load import load_base, load_processor, materialize, pending, skeleton
from tests.fakes.models import tiny_path


def test_bases_load_frozen_in_eval_mode_and_dtype():
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = load_base(tiny_path(), dtype=dtype)
        assert not model.training and {p.dtype for p in model.parameters()} == {expected}
        assert not any(p.requires_grad for p in model.parameters())


def test_processor_uses_the_pil_backend():
    assert type(load_processor(tiny_path()).image_processor).__name__.endswith("Pil")


def test_folders_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no usable model config"):
        load_base(tmp_path)
    with pytest.raises(ConfigError, match="no usable processor"):
        load_processor(tmp_path)
    with pytest.raises(ConfigError, match="holds no config.json"):
        materialize(BaseConfig(model=str(tmp_path)))
    with pytest.raises(ConfigError, match="does not exist"):
        materialize(BaseConfig(model=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="required"):
        materialize(BaseConfig())
    with pytest.raises(ConfigError, match="neither a folder nor available"):
        materialize(BaseConfig(model="nobody/nothing"))


def test_pending_names_what_is_missing():
    assert pending(BaseConfig(family="tiny")) is None
    assert pending(BaseConfig(model=str(tiny_path()))) is None
    assert "nobody/nothing" in pending(BaseConfig(model="nobody/nothing"))
    assert pending(BaseConfig(model="/no/folder")) is None and pending(BaseConfig(model="./model")) is None


def test_a_folder_that_is_quantised_already_is_refused(tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(tiny_path(), copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    for dtype in ("bf16", "nf4"):
        with pytest.raises(ConfigError, match=r"quantised already \(awq\)") as error:
            load_base(copy, dtype=dtype)
        assert "full-precision" in error.value.fix


def test_a_quantised_load_without_the_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes") as error:
        load_base(tiny_path(), dtype="nf4")
    assert error.value.where == "base.dtype"


def test_a_skeleton_has_shapes_and_no_weights():
    shapes = {n: p.shape for n, p in load_base(tiny_path()).named_parameters()}
    found = dict(skeleton(tiny_path()).named_parameters())
    assert {n: p.shape for n, p in found.items()} == shapes and {p.device.type for p in found.values()} == {"meta"}
