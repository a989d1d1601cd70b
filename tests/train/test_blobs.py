"""Tensors of a run: computed once, read in parts, verified, and never of another fingerprint."""

import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.files import write_json
from mcit.core.records import BlobRecord
from mcit.core.stored import read_sealed, write_sealed
from mcit.train.blobs import Blobs


class Build:
    def __init__(self, value=1.0):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        return {"x": torch.full((4, 2), self.value), "y": torch.arange(3)}, {"rows": {"a": [0, 4]}}


def test_is_built_once_and_read_in_parts(tmp_path):
    build = Build()
    blobs = Blobs(tmp_path / "blobs")
    blob = blobs.open("gere", {"base": "b", "pool": "p"}, build)
    assert (
        blob.index == {"rows": {"a": [0, 4]}}
        and blob.rows("x", 1, 3).shape == (2, 2)
        and blob.get("y").tolist() == [0, 1, 2]
    )
    assert blobs.open("gere", {"pool": "p", "base": "b"}, build) is blob
    again = Blobs(tmp_path / "blobs").open("gere", {"base": "b", "pool": "p"}, build)
    assert build.calls == 1 and torch.equal(again.get("x"), blob.get("x"))


def test_another_fingerprint_is_another_file(tmp_path):
    blobs, build = Blobs(tmp_path), Build()
    blobs.open("gere", {"base": "b"}, build)
    blobs.open("gere", {"base": "c"}, build)
    assert build.calls == 2 and len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_lost_file_is_computed_again(tmp_path):
    """Without its record, or without the data, a blob is not there."""
    build = Build()
    for ending in (".safetensors", ".json"):
        Blobs(tmp_path).open("gere", {"base": "b"}, build)
        next(tmp_path.glob(f"*{ending}")).unlink()
    Blobs(tmp_path).open("gere", {"base": "b"}, build)
    assert build.calls == 3


def test_damage_is_named(tmp_path):
    build = Build()
    Blobs(tmp_path).open("gere", {"base": "b"}, build)
    (data,) = tmp_path.glob("*.safetensors")
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StateError, match="checksum differs") as caught:
        Blobs(tmp_path).open("gere", {"base": "b"}, build)
    assert str(data) in str(caught.value) and "remove" in caught.value.fix
    data.write_bytes(content)
    (record,) = tmp_path.glob("*.json")
    known = read_sealed(record, BlobRecord)
    write_json(record, {**known, "seal": "0" * 16})
    with pytest.raises(StateError, match="checksum .* differs") as caught:
        Blobs(tmp_path).open("gere", {"base": "b"}, build)
    assert caught.value.where == str(record) and "computed again" in caught.value.fix
    write_sealed(record, {**known, "fingerprint": {"base": "other"}})
    with pytest.raises(StateError, match="another fingerprint"):
        Blobs(tmp_path).open("gere", {"base": "b"}, build)
    assert build.calls == 1


def test_without_a_folder_it_lives_in_a_temporary_one():
    build = Build()
    blobs = Blobs()
    folder = blobs._folder
    assert blobs.open("gere", {}, build).get("y").tolist() == [0, 1, 2] and folder.is_dir()
    del blobs
    assert not folder.is_dir()
