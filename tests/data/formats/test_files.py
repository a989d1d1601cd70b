"""Which reader a file gets, and its checksum."""

import json

import pytest

from mcit.core.errors import DataError
from mcit.core.files import sha256_file
from mcit.data.formats.files import checksum, elements


def test_json_by_content_whatever_its_name(tmp_path):
    (tmp_path / "a.txt").write_text(json.dumps([{"id": 1}]))
    (tmp_path / "b").write_text('{"id": 1}\n')
    assert [e.value for name in ("a.txt", "b") for e in elements(tmp_path / name)] == [{"id": 1}] * 2
    assert checksum(tmp_path / "b") == sha256_file(tmp_path / "b")


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(DataError, match="source file cannot be read"):
        checksum(tmp_path / "gone.json")
