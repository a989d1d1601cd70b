"""The short way of an adapted linear against peft's own layer."""

import pytest
import torch
from torch import nn

from mcit.core.schema import AdapterConfig
from mcit.engine import loralinear
from mcit.models import adapters
from mcit.models.experts import place


class Two(nn.Module):
    """Two linears of a decoder by name, one with a bias."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.up, self.down = nn.Linear(12, 20, dtype=dtype), nn.Linear(20, 12, bias=False, dtype=dtype)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def made(*, dropout=0.0, names=("default",), dtype=torch.float32):
    torch.manual_seed(0)
    model = Two(dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        config = AdapterConfig(rank=3, alpha=7.0, targets=["up", "down"], dropout=dropout)
        adapters._inject(model, name, ["up", "down"], config.rank, config.alpha, config.dropout, 1)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter)
        parameter.requires_grad_("default" in key)
    return model


def outcome(model, x):
    model.zero_grad()
    out = model(x)
    loss = (out.float() * torch.arange(out.numel()).view(out.shape)).sum()
    grads = torch.autograd.grad(loss, [*(p for p in model.parameters() if p.requires_grad), x])
    return [out, *grads]


@pytest.fixture
def calls(monkeypatch):
    """How often the function ran."""
    seen, own = [], loralinear._LoraLinear.apply
    monkeypatch.setattr(loralinear._LoraLinear, "apply", lambda *a: seen.append(1) or own(*a))
    return seen


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12)])
def test_values_and_gradients_are_those_of_the_layer(shape, calls):
    model, x = made(), torch.randn(*shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    before = outcome(model, x)
    layers = loralinear.fuse(model)
    after = outcome(model, x)
    assert len(layers) == len(calls) == 2 and len(before) == 6
    for one, other in zip(before, after, strict=True):
        assert (one - other).norm() <= 1e-6 * one.norm()
    loralinear.unfuse(layers)
    assert all(torch.equal(a, b) for a, b in zip(before, outcome(model, x), strict=True)) and len(calls) == 2


def test_inputs_that_need_no_gradient_get_none(calls):
    model = made()
    loralinear.fuse(model)
    model(torch.randn(4, 12)).sum().backward()
    assert len(calls) == 2 and all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", ["dropout", "two adapters", "off", "autocast", "low precision"])
def test_everything_else_runs_as_peft_has_it(case, calls):
    """The same bits as without."""
    settings = {
        "dropout": {"dropout": 0.5}, "two adapters": {"names": ("stage01", "default")},
        "low precision": {"dtype": torch.bfloat16},
    }.get(case, {})  # fmt: skip
    model = made(**settings)
    x = torch.randn(5, 12, dtype=settings.get("dtype", torch.float32)).requires_grad_()

    def run():
        torch.manual_seed(3)
        if case == "off":
            with adapters.disabled(model):
                return [model(x)]
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            return outcome(model, x)

    before = run()
    loralinear.fuse(model)
    assert all(torch.equal(a, b) for a, b in zip(before, run(), strict=True)) and not calls


def test_a_dropout_that_does_not_train_drops_nothing(calls):
    model = made(dropout=0.5).eval()
    x = torch.randn(5, 12).requires_grad_()
    before = outcome(model, x)
    loralinear.fuse(model)
    for one, other in zip(before, outcome(model, x), strict=True):
        assert (one - other).norm() <= 1e-6 * one.norm()
    assert len(calls) == 2


def test_a_trained_base_is_left_alone():
    model = made()
    model.up.get_base_layer().weight.requires_grad_(True)
    assert len(loralinear.fuse(model)) == 1


def test_a_mixture_of_experts_runs_as_it_is(calls):
    model = made()
    for layer in adapters.lora_layers(model).values():
        place(layer, "default", 3, 0.0)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    before = outcome(model, x)
    loralinear.fuse(model)
    after = outcome(model, x)
    assert not calls and len(before) == len(after) and all(map(torch.equal, before, after))
