import pytest
import torch
from torch import nn

from mcit.core.errors import StateError
from mcit.core.schema import OptimConfig
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.engine.optim import build_optimizer
from mcit.engine.optimstate import optimizer_tensors, restore_optimizer

KINDS = ("adamw", "adamw8bit")


def named(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"large": (96, 64), "also": (70, 65), "small": (10,), "never": (70, 70)}
    return {n: nn.Parameter(torch.randn(*shape, generator=generator)) for n, shape in shapes.items()}


def made(parameters, kind):
    return build_optimizer(parameters, OptimConfig(kind=kind, lr=0.01, weight_decay=0.1), is_projector=lambda n: False)


def steps(parameters, optimizer, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(1000 + step)
        for name, parameter in sorted(parameters.items()):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if name == "never" or (name == "small" and step == 0) else gradient
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_through_a_file_and_on_is_bitwise_the_straight_run(kind, tmp_path):
    straight = named()
    optimizer = made(straight, kind)
    steps(straight, optimizer, 0, 6)

    first = named()
    optimizer = made(first, kind)
    steps(first, optimizer, 0, 3)
    tensors, counts = optimizer_tensors(optimizer, first)
    assert counts == {"large": 3, "also": 3, "small": 2} and set(tensors) == set(counts)
    save_tensors(tmp_path / "o", {f"{k}|{n}": t for n, slots in tensors.items() for k, t in slots.items()})
    save_tensors(tmp_path / "w", first)

    again = {n: nn.Parameter(t) for n, t in load_tensors(tmp_path / "w").items()}
    read: dict = {}
    for key, tensor in load_tensors(tmp_path / "o").items():
        slot, _, name = key.partition("|")
        read.setdefault(name, {})[slot] = tensor
    other = made(again, kind)
    restore_optimizer(other, again, read, counts)
    steps(again, other, 3, 6)
    assert all(torch.equal(again[n].detach(), straight[n].detach()) for n in straight)
    assert not torch.equal(first["large"].detach(), straight["large"].detach())


def test_what_is_kept_of_eight_bit_moments():
    """96 x 64 = 6144 numbers are 24 blocks of 256, 70 x 65 = 4550 are 18 (rounded up); 10 numbers stay 32-bit."""
    parameters = named()
    optimizer = made(parameters, "adamw8bit")
    steps(parameters, optimizer, 0, 2)
    tensors, _ = optimizer_tensors(optimizer, parameters)
    shapes = {k: (tuple(t.shape), t.dtype) for k, t in tensors["large"].items()}
    assert shapes == {
        "state1": ((96, 64), torch.uint8),
        "state2": ((96, 64), torch.uint8),
        "qmap1": ((256,), torch.float32),
        "qmap2": ((256,), torch.float32),
        "absmax1": ((24,), torch.float32),
        "absmax2": ((24,), torch.float32),
    }
    assert tensors["also"]["absmax1"].shape == (18,)
    assert {k: t.dtype for k, t in tensors["small"].items()} == {"state1": torch.float32, "state2": torch.float32}


def test_restoring_takes_away_what_was_there_and_keeps_signs_of_zero():
    parameters = named()
    optimizer = made(parameters, "adamw")
    steps(parameters, optimizer, 0, 2)
    tensors, counts = optimizer_tensors(optimizer, parameters)
    tensors = {"small": {k: torch.full_like(t, -0.0) for k, t in tensors["small"].items()}}
    restore_optimizer(optimizer, parameters, tensors, counts)
    assert parameters["large"] not in optimizer.state
    assert bool(torch.signbit(optimizer.state[parameters["small"]]["exp_avg"]).all())


@pytest.mark.parametrize("kind, other", [KINDS, KINDS[::-1]])
def test_another_kind_of_optimiser_is_refused(kind, other):
    parameters = named()
    optimizer = made(parameters, kind)
    steps(parameters, optimizer, 0, 2)
    tensors, counts = optimizer_tensors(optimizer, parameters)
    with pytest.raises(StateError, match="is of another kind"):
        restore_optimizer(made(parameters, other), parameters, tensors, counts)
