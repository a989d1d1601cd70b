"""A state that goes to disk and back, and what is refused of one that another version wrote."""

import pytest

from mcit.core.errors import StateError
from mcit.core.files import write_json
from mcit.core.statefile import load_state, save_state
from mcit.core.tensorstore import HostTensors


class Counter:
    """Keeps a number."""

    state_version = 2

    def __init__(self):
        self.tensors, self.count = HostTensors(), 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_state_goes_to_disk_and_back(tmp_path):
    import torch

    one, other = Counter(), Counter()
    one.count = 3
    one.tensors.put("mean", "x", torch.ones(2))
    save_state(one, tmp_path / "counter")
    load_state(other, tmp_path / "counter")
    assert other.count == 3 and torch.equal(other.tensors.require("mean", "x"), torch.ones(2))


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"state_version": 1, "state": {"count": 3}}, "state has version 1, this code writes 2"),
        ({"state_version": 2, "state": {}}, "state lacks the key 'count'"),
        ({"state_version": 2, "state": {"count": 3, "b": 1, "a": 2}}, "state has unknown keys: a, b"),
        ({"state_version": 2}, "is not the state of a method: state"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_files_name(record, what, tmp_path):
    save_state(Counter(), tmp_path)
    write_json(tmp_path / "state.json", record)
    with pytest.raises(StateError) as error:
        load_state(Counter(), tmp_path)
    assert error.value.what.startswith(what) and error.value.fix
    assert error.value.where == str(tmp_path / "state.json")
