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


def test_accumulate_adds_in_place_and_survives_a_restart(tmp_path):
    """0.5 * 2, then + 0.25 * 4 after a restart: 2; the file that was read is not written to."""
    store = HostTensors()
    store.accumulate("f", "x", torch.full((2,), 2.0, requires_grad=True), 0.5)
    first = store.get("f", "x")
    assert first.tolist() == [1, 1] and not first.requires_grad
    store.save(tmp_path / "s.safetensors")
    bytes_before = (tmp_path / "s.safetensors").read_bytes()
    again = HostTensors()
    again.load(tmp_path / "s.safetensors")
    again.accumulate("f", "x", torch.full((2,), 4.0, dtype=torch.float64), 0.25)
    assert again.get("f", "x").tolist() == [2, 2] and again.get("f", "x").dtype == torch.float32
    assert (tmp_path / "s.safetensors").read_bytes() == bytes_before
    store.accumulate("f", "x", torch.ones(2))
    assert store.get("f", "x") is first and first.tolist() == [2, 2]
