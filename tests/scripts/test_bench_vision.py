"""scripts/bench/vision.py on the tiny model: every side answers and learns the same before anything is timed."""

import json
import sys

import pytest

from mcit.engine import features
from scripts.bench import vision


@pytest.mark.slow
def test_all_sides_are_measured(monkeypatch, capsys, cache):
    monkeypatch.setattr(features, "FOLDER", "vision")
    given = ["--base", "tiny", "--recipe", "tiny/letter", "--rows", "4", "--steps", "1", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", ["vision.py", *given])
    assert vision.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal_answers"] == found["asked"] == 4 and found["largest_loss_difference"] < 1e-4
    for what in ("steps", "answers"):
        assert set(found[what]["ms"]) == {"off", "empty", "full"} and found[what]["times"]["full"]["median"] > 0
    assert found["bytes"] and not list(cache.glob("bench-*"))
