"""What schemas of a memory's files refuse."""

import pytest

from mcit.core.errors import StateError
from mcit.core.stored import valid
from mcit.memory.records import MemoryEntry, MemoryRecord, MemoryTurn

FILE = {"bytes": 1, "sha256": "0" * 64}
RECORD = {
    "encoder": "model 1 layer 0", "dimension": 2, "turns": 0, "running": "", "overview": "", "settings": {},
    "files": {"entries-a.jsonl": FILE, "vectors-a.safetensors": FILE},
}  # fmt: skip
EXAMPLES = {
    MemoryEntry: {"turn": 0, "question": "q", "answer": "a", "recalled": None},
    MemoryTurn: {"turn": 0, "question": "q", "answer": "a", "recalled": [0]},
    MemoryRecord: RECORD,
}


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda m: m.__name__)
def test_every_field_is_needed_and_nothing_else_is_known(model):
    assert valid(model, EXAMPLES[model], where="f") == EXAMPLES[model]
    for name in EXAMPLES[model]:
        with pytest.raises(StateError, match=f"{name}: Field required"):
            valid(model, {k: v for k, v in EXAMPLES[model].items() if k != name}, where="f")
    with pytest.raises(StateError, match="another"):
        valid(model, {**EXAMPLES[model], "another": 1}, where="f")


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        (MemoryEntry, {"turn": -1}, "turn"),
        (MemoryEntry, {"recalled": 1.5}, "recalled"),
        (MemoryTurn, {"recalled": [-1]}, "recalled.0"),
        (MemoryTurn, {"answer": None}, "answer"),
        (MemoryRecord, {"dimension": 0}, "dimension"),
        (MemoryRecord, {"files": {"entries-a.jsonl": FILE}}, "names no entries or no vectors"),
        (MemoryRecord, {"files": {**RECORD["files"], "../x": FILE}}, "files"),
    ],
)
def test_values_out_of_their_range_are_named(model, changes, named):
    with pytest.raises(StateError, match=named):
        valid(model, {**EXAMPLES[model], **changes}, where="f")
