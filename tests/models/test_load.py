import shutil

import pytest
import torch

from mcit.core.errors import ConfigError
from mcit.core.schema import BaseConfig
from mcit.models.load import base_digest, load_base, load_processor, materialize, pending
from tests.fakes.models import tiny_path


def test_bases_load_frozen_in_eval_mode_and_dtype():
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = load_base(tiny_path(), dtype=dtype)
        assert not model.training and {p.dtype for p in model.parameters()} == {expected}
        assert not any(p.requires_grad for p in model.parameters())


def test_processor_uses_the_pil_backend():
    assert type(load_processor(tiny_path()).image_processor).__name__.endswith("Pil")


def test_digest_follows_the_content(tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(tiny_path(), copy)
    assert base_digest(copy) == base_digest(tiny_path()) == base_digest(copy)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert base_digest(copy) != base_digest(tiny_path())


def test_folders_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
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
