"""Uploading an export: to a hub on this machine, and never unless asked."""

import pytest

from mcit.core.errors import ConfigError, StateError
from mcit.export.push import check_repository, push
from tests.fakes.hub import served

RECORD = {"kind": "adapter", "stages": ["01-letter", "02-yesno"]}


@pytest.fixture
def folder(tmp_path):
    for name, data in {
        "README.md": b"---\nlicense: mit\n---\n",
        "adapter_config.json": b"{}",
        "sub/a.jinja": b"x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_every_file_is_in_one_commit_of_a_repository_that_was_created(folder, monkeypatch):
    with served(monkeypatch) as hub:
        check_repository("me/mine")
        assert push(folder, "me/mine", RECORD, private=True) == f"{hub.url}/me/mine"
        push(folder, "me/mine", RECORD)  # again: it exists
    assert hub.created["me/mine"] == {"private": False, "token": "Bearer hf_of_a_test"}
    files = {name: data for (_, name), data in hub.files.items()}
    assert files == {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.commits[0] == ("me/mine", "mcit: adapter of 01-letter, 02-yesno")


def test_private_is_asked_for(folder, monkeypatch):
    with served(monkeypatch) as hub:
        push(folder, "me/mine", RECORD, private=True)
    assert hub.created["me/mine"]["private"] is True


def test_a_hub_that_refuses_is_told_with_its_reason_and_the_cure(folder, monkeypatch):
    with served(monkeypatch, refuse=401), pytest.raises(StateError, match="did not take the export") as error:
        push(folder, "me/mine", RECORD)
    assert "401" in str(error.value) and "hf auth login" in str(error.value) and str(folder) in str(error.value)


def test_a_hub_that_is_not_there(folder, monkeypatch):
    with served(monkeypatch):
        pass
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(StateError, match="did not take the export"):
        push(folder, "me/mine", RECORD)


@pytest.mark.parametrize("name", ["", "mine", "a/b/c", "me/..", "me/mi ne", "/abs"])
def test_what_is_no_repository_is_refused(name, monkeypatch):
    with served(monkeypatch) as hub, pytest.raises(ConfigError, match=r".") as error:
        check_repository(name)
    assert "owner/name" in str(error.value) and hub.asked == []


def test_without_a_network_it_is_refused_before_anything_is_written(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="network is switched off"):
        check_repository("me/mine")
