"""Kept tensors: bit for bit, bounded, shared by processes, and made anew where a file is not what was written."""

import multiprocessing
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcit.core.paths import cache_dir
from mcit.engine import features
from mcit.engine.features import FOLDER, FeatureStore, held_bytes

VALUE = torch.arange(256.0).view(1, 4, 64)
SIZE = 1200
"""Bytes of a file of VALUE, about."""


@pytest.fixture(autouse=True)
def _empty(tmp_path, monkeypatch):
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path))


def files():
    return sorted((cache_dir() / FOLDER).glob("*/*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_kept_is_read_bit_for_bit(dtype):
    FeatureStore({"tower": 1}, 1 << 20).put("a", VALUE.to(dtype))
    found = FeatureStore({"tower": 1}, 1 << 20).get("a")
    assert found.dtype == dtype and torch.equal(found, VALUE.to(dtype))
    assert FeatureStore({"tower": 2}, 1 << 20).get("a") is None, "of another tower"
    assert FeatureStore({"tower": 1}, 1 << 20).get("b") is None


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def zeroed(file):
    file.write_bytes(bytes(file.stat().st_size))


def empty(file):
    file.write_bytes(b"")


def edited(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def replaced(file):
    save_file(load_file(file), file, metadata={"format": "pt"})


def of_another_picture(file):
    FeatureStore({"tower": 1}, 1 << 20).put("b", VALUE + 1)
    os.replace(file.with_name("b.safetensors"), file)


def of_another_tower(file):
    FeatureStore({"tower": 2}, 1 << 20).put("a", VALUE + 1)
    (other,) = (f for f in files() if f.parent != file.parent)
    os.replace(other, file)


@pytest.mark.parametrize("damage", [cut, zeroed, empty, edited, replaced, of_another_picture, of_another_tower])
def test_a_file_that_is_not_what_was_written_is_made_anew(damage):
    FeatureStore({"tower": 1}, 1 << 20).put("a", VALUE)
    (file,) = files()
    damage(file)
    store = FeatureStore({"tower": 1}, 1 << 20)
    assert store.get("a") is None
    store.put("a", VALUE)
    assert torch.equal(FeatureStore({"tower": 1}, 1 << 20).get("a"), VALUE) and not store.note


def test_what_a_killed_writer_left_is_removed_and_not_counted():
    store = FeatureStore({"tower": 1}, 1 << 20)
    store.put("a", VALUE)
    left = files()[0].with_name(".b.safetensors.abcdefgh.tmp")
    left.write_bytes(bytes(5000))
    (cache_dir() / FOLDER / ".held").write_text("no number")
    FeatureStore({"tower": 1}, 1 << 20).put("c", VALUE)
    assert not left.exists() and held_bytes() == sum(file.stat().st_size for file in files())


def test_a_count_that_is_lost_is_made_again():
    """Else the bound would begin anew."""
    store = FeatureStore({"tower": 1}, 3 * SIZE)
    for key in "abcde":
        store.put(key, VALUE)
        (cache_dir() / FOLDER / ".held").write_text("")
    assert store.note == "it is full" and sum(file.stat().st_size for file in files()) <= 3 * SIZE


def test_a_count_is_written_whole(monkeypatch):
    """A process that is killed meanwhile leaves the count of before."""
    store = FeatureStore({"tower": 1}, 1 << 20)
    store.put("a", VALUE)
    counted = held_bytes()

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store._count(10**9)
    assert held_bytes() == counted


def test_at_the_bound_what_this_process_uses_stays_and_what_nobody_used_goes():
    for tower in (1, 2):
        FeatureStore({"tower": tower}, 1 << 20).put("a", VALUE)
    for age, file in enumerate(files(), start=1):
        os.utime(file, (features._BEGAN - 100 * age, features._BEGAN - 100 * age))
    old = files()[1]
    store = FeatureStore({"tower": 3}, 5 * SIZE)
    for key in "abcdefgh":
        store.put(key, VALUE)
    assert not old.exists() and sum(file.stat().st_size for file in files()) <= 5 * SIZE
    assert torch.equal(store.get("a"), VALUE) and store.get("h") is None
    assert store.note == "it is full"


def test_a_tensor_above_the_bound_is_not_kept():
    store = FeatureStore({"tower": 1}, 100)
    store.put("a", VALUE)
    assert files() == [] and store.note == "it is full"


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path):
    (tmp_path / FOLDER).write_text("a file")
    store = FeatureStore({"tower": 1}, 1 << 20)
    store.put("a", VALUE)
    assert store.get("a") is None and store.note == "File exists"


def fill(tower):
    store = FeatureStore({"tower": tower}, 12000)
    for key in range(12):
        store.put(str(key), torch.full((1, 4, 64), float(key)))
    kept = [(key, store.get(str(key))) for key in range(12)]
    os._exit(any(value is not None and not bool((value == key).all()) for key, value in kept))


def test_several_processes_stay_within_the_bound(tmp_path):
    both = [multiprocessing.get_context("fork").Process(target=fill, args=(k,)) for k in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    held = sum(file.stat().st_size for file in files())
    assert [one.exitcode for one in both] == [0, 0]
    assert 6000 < held <= 12000 and held == held_bytes()
