import torch

from mcit.methods.formulas.smoothing import inverse, noise_of, norm_of, parted, to_unit_tensors
from tests.fakes.quadratic import UNIT, Held, Step


def test_streams_are_parted():
    assert parted(("task", "forget", "replay"), ("forget", "pair")) == (["forget"], ["task", "replay"])


def test_the_inverse_of_nothing_is_nothing():
    assert inverse(torch.tensor([4.0, 0.0])).tolist() == [0.25, 0.0]


def test_the_norm_of_a_sum_by_inner_products():
    """2 (3, 0) - (6, -4) = (0, 4)."""
    a, b = (Held({"x": torch.tensor(p), "y": torch.tensor(q)}) for p, q in ((3.0, 0.0), (6.0, -4.0)))
    assert norm_of(Step(None, (0, 0)), [(a, 2.0), (b, torch.tensor(-1.0))]).item() == 4.0


def test_each_tensor_along_its_own_gradient():
    """Gradients (3, 4) and 0: the first moves by a tenth of (.6, .8), the second not at all."""
    weights = {"x": torch.zeros(2), "y": torch.ones(1)}
    to_unit_tensors(Held({"x": torch.tensor([3.0, 4.0]), "y": torch.zeros(1)}), 0.1)(UNIT, weights)
    assert torch.allclose(weights["x"], torch.tensor([0.06, 0.08])) and weights["y"].tolist() == [1.0]


def test_noise_goes_by_name():
    tensors = {"x": torch.zeros(1000), "y": torch.zeros(1000)}
    first, again = (noise_of(UNIT, tensors, 0.5, seed=len) for _ in range(2))
    assert torch.equal(first["x"], again["x"]) and abs(float(first["x"].std()) - 0.5) < 0.05
    other = noise_of(UNIT, tensors, 0.5, seed=lambda name: {"m.x": 1, "m.y": 2}[name])
    assert not torch.equal(other["x"], other["y"])
