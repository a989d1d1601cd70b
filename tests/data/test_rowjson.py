"""Rows of a built folder."""

import json
from dataclasses import replace

from mcit.core.types import Encoding
from mcit.data.rowjson import row_from_json, row_to_json
from tests.fakes.rows import row


def test_row_json_round_trip():
    one = row("<image>\nq", "😀", images=("a.png",), id="ü", style="word", meta={"k": {"n": 1.5}}, root="/r")
    plain = replace(one, images=(), encoding=Encoding(raw=True))
    assert row_from_json(json.loads(json.dumps(row_to_json(plain))), root="/r") == plain
    stored = json.loads(json.dumps(row_to_json(one, root="0")))
    assert row_from_json(stored, root="/r") == one
    assert stored["root"] == "0" and "/r" not in json.dumps(stored)
