"""Entries of the cache: found under all that they follow from, none where they are damaged, the oldest removed."""

import json

import pytest

from mcit.core.entries import Entries, code_digest, versions


@pytest.fixture
def entries(tmp_path, monkeypatch):
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path))
    return Entries("things", most=2), tmp_path / "things"


def test_what_is_kept_is_found_under_its_identity_alone(entries):
    kept, folder = entries
    kept.put({"a": 1}, [1, "x"])
    kept.put({"a": 2}, None)
    assert kept.get({"a": 1}) == [1, "x"] and kept.get({"a": 2}) is None and kept.get({"b": 1}) is None
    assert Entries("others", most=2).get({"a": 1}) is None and len(list(folder.iterdir())) == 2


def test_a_damaged_entry_is_none(entries):
    kept, folder = entries
    kept.put({}, 1)
    (file,) = folder.iterdir()
    whole = json.loads(file.read_text())
    for text in (json.dumps({**whole, "found": 2}), "{", "[]", ""):
        file.write_text(text)
        assert kept.get({}) is None
    kept.put({}, 1)
    assert kept.get({}) == 1


def test_the_folder_is_bounded_and_one_that_cannot_be_written_keeps_nothing(entries):
    kept, folder = entries
    for number in range(4):
        kept.put({"n": number}, number)
    assert len(list(folder.iterdir())) == 2
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    kept.put({}, 1)
    assert kept.get({}) is None


def test_digests_and_versions_name_what_is_there():
    assert code_digest("core") != code_digest("core", "data") == code_digest("core", "data")
    assert versions(("torch", "no-such-package")).keys() == {"torch"}
