import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.tensorstore import HostTensors


def test_round_trip_and_byte_stability(tmp_path):
    store = HostTensors()
    values = {"b": torch.arange(3, dtype=torch.int32), "a.b": torch.randn(2, 2).bfloat16(), "m": torch.tensor([True])}
    for name, value in values.items():
        store.put("k", name, value)
    store.save(tmp_path / "1.safetensors")
    other = HostTensors()
    other.load(tmp_path / "1.safetensors")
    assert other.names("k") == ["a.b", "b", "m"]
    assert all(torch.equal(other.get("k", n), v) and other.get("k", n).dtype == v.dtype for n, v in values.items())
    again = HostTensors()
    for name in reversed(values):
        again.put("k", name, values[name])
    again.save(tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_put_copies_and_drop_forgets(tmp_path):
    store, value = HostTensors(), torch.zeros(2, requires_grad=True)
    store.put("k", "x", value)
    with torch.no_grad():
        value += 1
    assert store.get("k", "x").sum() == 0 and not store.get("k", "x").requires_grad
    assert store.nbytes() == 8
    store.put("j", "x", value)
    store.drop("k")
    assert store.get("k", "x") is None and store.names("j") == ["x"]
    store.drop("j", "x")
    store.save(tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()
    store.load(tmp_path / "none.safetensors")
    with pytest.raises(StateError):
        store.put("a|b", "x", value)


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"12345678junk")
    with pytest.raises(StateError, match="not a whole safetensors file"):
        HostTensors().load(path)
