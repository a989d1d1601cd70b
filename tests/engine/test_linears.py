"""Linears through oneDNN against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mcit.engine import linears


@pytest.fixture(autouse=True)
def paying(monkeypatch):
    """As on a processor where it pays."""
    monkeypatch.setattr(linears, "pays", lambda: True)


@pytest.fixture
def shapes(monkeypatch):
    """Positions of every product that oneDNN made."""
    seen, own = [], linears._onednn
    monkeypatch.setattr(linears, "_onednn", lambda x, *rest: seen.append(len(x)) or own(x, *rest))
    return seen


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("positions", [8, 9, 33, 300, 2600])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_torch_in_blocks_of_few_sizes(positions, biased, shapes):
    x, W, bias = drawn(positions, 24), drawn(40, 24), drawn(40) if biased else None
    out = linears.product(x, W, bias)
    torch.testing.assert_close(out, functional.linear(x, W, bias), rtol=1e-5, atol=1e-5)
    *whole, last = shapes
    assert set(whole) <= set(linears._BLOCKS) and last % linears._UNIT == 0
    assert positions <= sum(shapes) < positions + linears._UNIT


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_first_and_second_order(frozen, shapes):
    def outcome(function):
        x, W, bias = (drawn(*shape).requires_grad_() for shape in ((2, 20, 24), (40, 24), (40,)))
        wanted = [x] if frozen else [x, W, bias]
        if frozen:
            W.requires_grad_(False), bias.requires_grad_(False)
        first = torch.autograd.grad(function(x, W, bias).square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), wanted)
        return [*first, *second]

    mine = outcome(linears.linear)
    assert shapes
    for got, expected in zip(mine, outcome(functional.linear), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("other", ["few", "double", "autocast", "switched off"])
def test_what_goes_the_usual_way(other, shapes, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", other != "switched off")
    dtype = torch.float64 if other == "double" else torch.float32
    x, W = drawn(7 if other == "few" else 20, 24).to(dtype), drawn(40, 24).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=other == "autocast"):
        assert torch.equal(linears.linear(x, W), functional.linear(x, W))
    assert shapes == []


def test_plain_linears_of_a_model_and_no_others(shapes):
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(24, 24), Own(24, 24), nn.Linear(24, 8))
    x = drawn(1, 20, 24)
    before = model(x)
    with linears.quick(model):
        assert linears.quicken(model) == []  # they are already
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
        assert shapes == [24, 24]
    assert torch.equal(model(x), before)
    assert len(shapes) == 2


def test_it_pays_on_wide_processors_of_amd(monkeypatch, tmp_path):
    monkeypatch.undo()
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        assert not linears.pays()
        return
    cpus = tmp_path / "cpuinfo"
    monkeypatch.setattr(linears, "_CPUS", cpus)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    asked = linears.pays.__wrapped__
    for vendor, capability, expected in (
        ("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        cpus.write_text(f"vendor_id : {vendor}\n")
        assert asked() is expected
    cpus.unlink()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not asked()
