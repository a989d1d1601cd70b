import json
import os

import pytest

from mcit.core import stored
from mcit.core.errors import StateError
from mcit.core.files import digest_of, write_json
from mcit.core.records import ExportRecord, Record


class Point(Record):
    what = "a point"
    fix = "draw it again"
    x: int
    of: dict[str, float] = {}


class Name(Record):
    what = "a name"
    name: str


def test_a_sealed_record_comes_back(tmp_path):
    stored.write_sealed(tmp_path / "p.json", {"x": 1, "of": {"é": 0.1}})
    assert stored.read_sealed(tmp_path / "p.json", Point) == {"x": 1, "of": {"é": 0.1}}
    text = json.loads((tmp_path / "p.json").read_text())
    assert text["seal"] == digest_of({"x": 1, "of": {"é": 0.1}})[:16] and len(text["seal"]) == 16


@pytest.mark.parametrize("at", range(60))
def test_no_changed_byte_gets_through(tmp_path, at):
    """Whatever byte is changed: the record is refused, or it is the same record (blanks)."""
    path = tmp_path / "p.json"
    stored.write_sealed(path, {"x": 12, "of": {"a": 0.5}})
    data = bytearray(path.read_bytes())
    if at >= len(data):
        return
    for value in (data[at] ^ 1, ord("0"), ord('"'), ord(" "), 0):
        changed = bytes([*data[:at], value, *data[at + 1 :]])
        path.write_bytes(changed)
        try:
            assert stored.read_sealed(path, Point) == {"x": 12, "of": {"a": 0.5}}
        except StateError as error:
            assert error.where == str(path)


@pytest.mark.parametrize("content", [3, [], {}, {"x": 1}, {"x": 1, "seal": 3}, {"x": float("nan"), "seal": "0" * 16}])
def test_what_has_no_seal_is_refused(tmp_path, content):
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(StateError, match="checksum") as error:
        stored.read_sealed(tmp_path / "p.json", Point)
    assert error.value.fix == "draw it again"


@pytest.mark.parametrize("content", [{}, {"x": "1"}, {"x": 1.0}, {"x": 1, "y": 2}, {"x": 1, "of": {"a": "b"}}])
def test_a_whole_record_of_something_else_is_refused_and_the_field_named(tmp_path, content):
    stored.write_sealed(tmp_path / "p.json", content)
    write_json(tmp_path / "q.json", content)
    for read, name in ((stored.read_sealed, "p.json"), (stored.read_record, "q.json")):
        with pytest.raises(StateError, match="is not a point: ") as error:
            read(tmp_path / name, Point)
        assert error.value.where == str(tmp_path / name) and error.value.fix == "draw it again"


def test_lines_are_sealed_one_by_one(tmp_path):
    path = tmp_path / "l.jsonl"
    lines = [stored.sealed_line(r) for r in ({"x": 1}, {"name": "a"}, {"x": 2}, {"z": 3}, {"x": 4})]
    lines[2] = lines[2].replace("2", "3", 1)
    path.write_text("\n".join(lines) + '\n[]\n{"x": 5, "se')
    whole, damaged = stored.read_sealed_lines(path, Point, Name)
    assert whole == [{"x": 1}, {"name": "a"}, {"x": 4}] and damaged == [3, 4, 6]
    path.write_text("\n".join(lines[:2]))
    assert stored.read_sealed_lines(path, Point, Name) == ([{"x": 1}, {"name": "a"}], [])


# ---- manifests -------------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "a").write_text("one")
    (tmp_path / "s" / "b").write_text("two")
    stored.write_manifest(tmp_path)
    return tmp_path


def refused(folder, match, **options):
    with pytest.raises(StateError, match=match) as error:
        stored.check_manifest(folder, **options)
    return error.value.where


def test_a_manifest_lists_every_file_and_its_own_kind_deeper_down(folder):
    (folder / "s" / "manifest.json").write_text("{}")
    stored.write_manifest(folder)
    assert list(stored.check_manifest(folder)["files"]) == ["a", "s/b", "s/manifest.json"]


def test_a_changed_missing_or_additional_file_is_named(folder):
    (folder / "s" / "b").write_text("tw0")
    said = r"checksum differs from the manifest: sha256 [0-9a-f]{12}… \(3 bytes\), expected [0-9a-f]{12}… \(3 bytes"
    assert refused(folder, said) == str(folder / "s" / "b")
    (folder / "s" / "b").write_text("twos")
    assert refused(folder, "4 bytes") == str(folder / "s" / "b")
    (folder / "s" / "b").write_text("two")
    (folder / "s" / "c").write_text("three")
    assert refused(folder, "not listed") == str(folder / "s" / "c")
    stored.check_manifest(folder, unlisted=True)
    (folder / "s" / "c").unlink()
    os.symlink(folder / "s", folder / "link")
    assert refused(folder, "not listed") == str(folder / "link")
    (folder / "link").unlink()
    (folder / "a").unlink()
    assert refused(folder, "missing") == str(folder / "a")


@pytest.mark.parametrize("entry", [{}, 3, {"bytes": 1}, {"bytes": -1, "sha256": "0" * 64}, {"bytes": 1, "sha256": "0"}])
def test_a_manifest_with_a_strange_entry_is_none(tmp_path, entry):
    stored.write_sealed(tmp_path / "manifest.json", {"files": {"a": entry}})
    assert refused(tmp_path, "is not a manifest: files.a") == str(tmp_path / "manifest.json")


def test_a_key_damaged_in_the_manifest_is_an_error_that_names_it(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"sha256"', '"sha257"', 1))
    assert refused(folder, "checksum") == str(path)


def test_one_file_is_read_by_its_manifest(folder):
    write_json(folder / "s" / "p.json", {"x": 1})
    with pytest.raises(StateError, match="not listed"):
        stored.read_listed(folder, "s/p.json", Point)
    stored.write_manifest(folder)
    assert stored.read_listed(folder, "s/p.json", Point) == {"x": 1}
    (folder / "a").write_text("others are not looked at")
    assert stored.read_listed(folder, "s/p.json", Point) == {"x": 1}
    write_json(folder / "s" / "p.json", {"x": 2})
    with pytest.raises(StateError, match="checksum differs") as error:
        stored.read_listed(folder, "s/p.json", Point)
    assert error.value.where == str(folder / "s" / "p.json")
    (folder / "s" / "p.json").unlink()
    with pytest.raises(StateError, match="missing"):
        stored.read_listed(folder, "s/p.json", Point)


def test_a_manifest_may_say_more_and_have_another_name(tmp_path):
    (tmp_path / "a").write_text("1")
    record = {
        "kind": "delta",
        "run": "r",
        "base": "b",
        "base_sha256": "0" * 64,
        "stages": ["01-a"],
        "lineage": "1" * 64,
    }
    stored.write_manifest(tmp_path, name="export.json", extra={**record, "difference": 0.5})
    found = stored.check_manifest(tmp_path, name="export.json", model=ExportRecord)
    assert found["difference"] == 0.5 and list(found["files"]) == ["a"]
    with pytest.raises(StateError, match="is not a manifest: base"):
        stored.check_manifest(tmp_path, name="export.json")
