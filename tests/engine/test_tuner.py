from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.core.schema import OptimConfig
from mcit.engine.tuner import Tuner


class OneProcess:
    """Two tensors with given gradients."""

    def __init__(self, **gradients):
        self.weights = {"a": torch.tensor([[1.0, -1.0]]), "b": torch.tensor([3.0])}
        self.gradients, self.spec, self.discarded = gradients, SimpleNamespace(where="stage s"), 0

    def shapes(self):
        return {name: tensor.shape for name, tensor in self.weights.items()}

    def part(self, name):
        return self.weights[name]

    def part_gradients(self, names):
        return {name: self.gradients.get(name) for name in names}

    def norm_of(self, gradients):
        return torch.stack([g.double().norm() for g in gradients.values() if g is not None]).norm()

    def put_parts(self, parts):
        self.weights.update({name: part.clone() for name, part in parts.items()})

    def discard(self):
        self.discarded += 1


def test_adamw_starts_fresh_and_only_what_is_named_moves():
    """The first AdamW step is lr * sign(g): 0.1 at the whole rate, 0.05 at half of it with equal gradients."""
    engine = OneProcess(a=torch.tensor([[2.0, -3.0]]), b=torch.tensor([1.0]))
    tuner = Tuner(engine, ["a"], OptimConfig(lr=0.1, clip=None))
    tuner.step(1.0)
    assert torch.allclose(engine.weights["a"], torch.tensor([[0.9, -0.9]]), atol=1e-6)
    tuner.step(0.5)
    assert torch.allclose(engine.weights["a"], torch.tensor([[0.85, -0.85]]), atol=1e-6)
    assert engine.weights["b"].tolist() == [3.0] and engine.discarded == 2


def test_clipping_is_over_what_is_tuned():
    """|g| = 5 clipped to 1e-9, of the size of eps: lr * g / (|g| + eps) with g = (0.6, 0.8) e-9 and eps 1e-9."""
    engine = OneProcess(a=torch.tensor([[3.0, 4.0]]))
    Tuner(engine, ["a"], OptimConfig(lr=1.0, clip=1e-9, eps=1e-9)).step(1.0)
    expected = torch.tensor([[1 - 0.6 / 1.6, -1 - 0.8 / 1.8]])
    assert torch.allclose(engine.weights["a"], expected, atol=1e-3)


def test_weight_decay_is_for_matrices_and_needs_a_gradient():
    """w - lr * decay * w - lr * sign(g): 1 - 0.1 * 0.5 - 0.1 = 0.85; the vector b has no decay."""
    engine = OneProcess(a=torch.tensor([[1.0, -1.0]]), b=torch.tensor([1.0]))
    Tuner(engine, ["a", "b"], OptimConfig(lr=0.1, weight_decay=0.5, clip=None)).step(1.0)
    assert torch.allclose(engine.weights["a"], torch.tensor([[0.85, -0.85]]), atol=1e-6)
    assert torch.allclose(engine.weights["b"], torch.tensor([2.9]), atol=1e-6)
    engine = OneProcess(b=torch.tensor([1.0]))
    Tuner(engine, ["a", "b"], OptimConfig(lr=0.1, weight_decay=0.5, clip=None)).step(1.0)
    assert engine.weights["a"].tolist() == [[1.0, -1.0]]


def test_bad_names_and_gradients_are_told():
    engine = OneProcess(a=torch.tensor([[float("nan"), 1.0]]))
    for names, says in ((["c"], "'c' does not train"), ([], "no tensor is named")):
        with pytest.raises(TrainingError, match=says):
            Tuner(engine, names, OptimConfig())
    with pytest.raises(TrainingError, match="non-finite gradient"):
        Tuner(engine, ["a"], OptimConfig()).step(1.0)
    assert engine.weights["a"].tolist() == [[1.0, -1.0]] and engine.discarded == 1
