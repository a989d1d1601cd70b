"""The gated MLP in blocks against its modules."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from mcit.engine import gated
from mcit.models import adapters


class Gated(nn.Module):
    """As a Llama block has it; `bias` as some families have it."""

    def __init__(self, bias=False, act="silu"):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(12, 20, bias=bias), nn.Linear(12, 20, bias=bias)
        self.down_proj, self.act_fn = nn.Linear(20, 12, bias=bias), ACT2FN[act]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Swapped(Gated):
    """The same parts, put together otherwise."""

    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


def made(mlp, targets=gated._LINEARS, dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(mlp).requires_grad_(False)
    if targets:
        adapters._inject(model, "default", [f"0.{name}" for name in targets], 3, 7.0, dropout, 1)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.1)
    return model


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def sizes(monkeypatch):
    """Positions of every time that blocks were made."""
    seen, own = [], gated.blocks
    monkeypatch.setattr(gated, "blocks", lambda count: seen.append(count) or own(count))
    return seen


@pytest.mark.parametrize(
    ("bias", "shape", "targets"),
    [
        (False, (3, 12), 3),
        (True, (1, 615, 12), 3),
        (False, (2, 40, 12), 2),
        (True, (70, 12), 0),
        (False, (1, 0, 12), 0),
    ],
)
def test_values_are_those_of_the_modules(bias, shape, targets, sizes):
    model, x = made(Gated(bias), gated._LINEARS[:targets]), drawn(*shape)
    with torch.no_grad():
        before = model(x)
        with gated.gated(model):
            after = model(x)
        assert sizes == [x[..., 0].numel()] * bool(x.numel()) and after.shape == before.shape
        assert (before - after).norm() <= 1e-6 * before.norm()
        assert torch.equal(model(x), before) and len(sizes) <= 1 and "forward" not in vars(model[0])


@pytest.mark.parametrize("other", [Swapped(), Gated(act="gelu"), nn.ModuleDict({"gate_proj": nn.Linear(12, 12)})])
def test_modules_of_other_parts_are_left_alone(other):
    with gated.gated(nn.Sequential(other)):
        assert "forward" not in vars(other)


@pytest.mark.parametrize("case", ["gradient", "off", "dropout"])
def test_what_runs_as_it_is(case, sizes):
    """The same bits as without."""
    model, x = made(Gated(), dropout=0.5 if case == "dropout" else 0.0), drawn(16, 12)
    model.train(case == "dropout")

    def run():
        torch.manual_seed(3)
        with torch.set_grad_enabled(case == "gradient"):
            if case == "off":
                with adapters.disabled(model):
                    return model(x)
            return model(x)

    before = run()
    with gated.gated(model):
        assert torch.equal(run(), before) and sizes == []
