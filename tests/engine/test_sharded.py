"""Against parts held by a plain object; real parts are in tests/contracts/test_engines.py."""

import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.core.types import WeightUnit
from mcit.engine.sharded import Gatherer, ShardGradients, ShardWeights

UNIT = WeightUnit("m", "lora", {"A": "a", "B": "b"}, (2, 2))


class Parts:
    """Elements 1 and 2 of a 2 x 2 tensor, and nothing of the other."""

    def __init__(self):
        self.spans = {"a": (1, 3), "b": (0, 0)}
        self.weights = {"a": torch.tensor([2.0, 3.0]), "b": torch.zeros(0)}
        self.grads = {"a": torch.tensor([5.0, 7.0]), "b": torch.zeros(0)}
        self.moments = {"a": torch.ones(2), "b": torch.zeros(0)}
        self.state = False
        self.live = {}

    def span(self, name):
        return self.spans[name]

    def weight(self, name):
        return self.weights[name]

    def put_weight(self, name, whole):
        start, stop = self.spans[name]
        self.weights[name] = whole.reshape(-1)[start:stop].clone()
        self.live[name] = whole.clone()

    def gradient(self, name):
        return self.grads[name]

    def put_gradient(self, name, part):
        self.grads[name] = part

    def has_state(self, name):
        return self.state

    def moment(self, name, key):
        return self.moments[name]


@pytest.fixture
def parts():
    return Parts()


@pytest.fixture
def gatherer(parts):
    return Gatherer(parts, {"a": torch.Size([2, 2]), "b": torch.Size([3])}, torch.device("cpu"))


def test_parts_stand_where_they_belong_and_edits_are_cut_again(parts, gatherer):
    weights = ShardWeights(gatherer, [UNIT])
    with weights.edit(UNIT) as tensors:
        assert tensors["A"].tolist() == [[0.0, 2.0], [3.0, 0.0]] and tensors["B"].tolist() == [0.0, 0.0, 0.0]
        tensors["A"].mul_(10)
    assert parts.weights["a"].tolist() == [20.0, 30.0] and parts.live["a"].tolist() == [[0.0, 20.0], [30.0, 0.0]]
    assert {n: t.numel() for n, t in weights.local().items()} == {"a": 2, "b": 0}


def test_moments_are_forgotten_once_there_are_some(parts, gatherer):
    weights = ShardWeights(gatherer, [UNIT])
    weights.forget_moments(UNIT)
    assert parts.moments["a"].tolist() == [1.0, 1.0]
    parts.state = True
    weights.forget_moments(UNIT)
    assert parts.moments["a"].tolist() == [0.0, 0.0]


def test_gradients_are_read_scaled_and_replaced(parts, gatherer):
    touched = set()
    grads = ShardGradients(gatherer, [UNIT], touched)
    grads.scale(UNIT, 2.0)
    assert grads.full(UNIT)["A"].tolist() == [[0.0, 10.0], [14.0, 0.0]] and not touched
    grads.replace(UNIT, "A", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert parts.grads["a"].tolist() == [2.0, 3.0] and touched == {"a"}
    with pytest.raises(TrainingError, match="shape"):
        grads.replace(UNIT, "A", torch.zeros(3))


def test_frozen_entries_are_put_back(parts, gatherer):
    grads = ShardGradients(gatherer, [UNIT], set())
    grads.freeze(UNIT, "A", torch.tensor([[True, True], [False, False]]))
    parts.weights["a"] = torch.tensor([8.0, 9.0])
    grads.restore_frozen()
    assert parts.weights["a"].tolist() == [2.0, 9.0] and parts.live["a"].tolist() == [[0.0, 2.0], [9.0, 0.0]]
