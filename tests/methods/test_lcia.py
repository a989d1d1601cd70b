import pytest
import torch

from mcit.core.config import load_yaml, parse
from mcit.core.paths import shipped
from mcit.methods.lcia import LCIA
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import Gradients, Weights, context


def preset(name):
    settings = {k: v for k, v in load_yaml(shipped("configs") / "methods" / f"{name}.yaml").items() if k != "name"}
    config, problems = parse(LCIA.Config, settings)
    assert not problems
    return LCIA(config)


def run(method, steps, start=(0.0, 0.0)):
    """`steps` are (weights after, gradient) of A; B stays at 1. Returns the committed A and what was logged."""
    weights = Weights(A=torch.tensor(start), B=torch.tensor([1.0]))
    ctx = context(weights=weights)
    method.on_stage_start(ctx)
    for value, gradient in steps:
        method.before_step(Gradients(A=torch.tensor(gradient), B=torch.tensor([0.0])), ctx)
        weights.tensors["A"] = torch.tensor(value)
        method.after_step(ctx)
    method.on_stage_end(ctx)
    return weights.tensors["A"].tolist(), {k: float(v) for k, v in ctx.logged.items()}


def test_the_first_step_falls_back():
    """The released code's 0.01 of (1, 1), the paper's 0.99 of the start: (0.01, 0.01) both."""
    for name in ("lcia", "lcia_code"):
        value, logged = run(preset(name), [((1.0, 1.0), (1.0, -1.0))])
        assert value == pytest.approx([0.01, 0.01], rel=1e-5)
        assert logged["lcia/fallback"] == 1.0 and logged["lcia/fallback_of_stage"] == 1.0


def test_the_second_step_by_hand_in_every_preset():
    """Weights stay at 0 in the first step, then (4, -3), g (1, -1) after (-1, 1): |w| = 7 and |g - g'| = 4. The paper's rule
    has 3 * 7 / 28 = 0.75 of the old average: (1, -0.75). The code: 0.2142857 of the new. Continual-NExT: 0.01 * 3 / 28."""
    steps = [((0.0, 0.0), (-1.0, 1.0)), ((4.0, -3.0), (1.0, -1.0))]
    value, logged = run(preset("lcia"), steps)
    assert value == pytest.approx([1.0, -0.75]) and logged["lcia/fallback"] == 0.5  # B never moves
    assert logged["lcia/keep"] == pytest.approx((0.75 + 0.99) / 2)
    assert logged["lcia/fallback_of_stage"] == pytest.approx(3 / 4)
    assert run(preset("lcia_code"), steps)[0] == pytest.approx([0.857143, -0.642857], abs=1e-6)
    assert run(preset("lcia_next"), steps)[0] == pytest.approx([4 * 0.03 / 28, -3 * 0.03 / 28], abs=1e-7)


def test_the_rule_falls_back_outside_the_interval():
    """The code's value is 2 * 3 / (2 * 1) = 3 at w (1, 1), g (1, -1) after (1, 0)."""
    value, _ = run(preset("lcia_code"), [((0.0, 0.0), (1.0, 0.0)), ((1.0, 1.0), (1.0, -1.0))])
    assert value == pytest.approx([0.01, 0.01], rel=1e-5)


def test_nothing_large_is_left_after_the_stage():
    method = preset("lcia")
    run(method, [((1.0, 1.0), (1.0, -1.0))])
    assert [method.tensors.names(kind) for kind in ("ema", "gradient", "next", "before")] == [[]] * 4


def test_estimates_and_settings():
    assert preset("lcia").state_bytes({"a": (3, 2)}, stages=1) == 96
    assert preset("lcia_code").state_bytes({"a": (3, 2)}, stages=1) == 72
    assert LCIA.Config() == shipped_config(LCIA)
    assert refused(LCIA, factor=0) == ["factor"] and refused(LCIA, fallback=1.5) == ["fallback"]
