import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.tensorfile import load_tensors, save_tensors


def test_equal_content_gives_equal_bytes_whatever_the_order_or_layout(tmp_path):
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.bfloat16)
    save_tensors(tmp_path / "1", {"b": b, "a": a})
    save_tensors(tmp_path / "2", {"a": a.T.contiguous().T, "b": b})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    loaded = load_tensors(tmp_path / "1")
    assert torch.equal(loaded["a"], a) and torch.equal(loaded["b"], b)


def test_missing_and_cut_off_files_are_named(tmp_path):
    with pytest.raises(StateError, match="missing"):
        load_tensors(tmp_path / "none")
    save_tensors(tmp_path / "x", {"a": torch.zeros(10)})
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[:-4])
    with pytest.raises(StateError, match="not a whole safetensors file") as error:
        load_tensors(tmp_path / "x")
    assert str(tmp_path / "x") in str(error.value)
