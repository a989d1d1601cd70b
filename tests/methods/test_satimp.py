import math

import pytest

from mcit.core.config import load_yaml
from mcit.core.paths import shipped
from mcit.methods.satimp import SatImp
from tests.fakes.forgetting import batch_of, output, step_context
from tests.fakes.settings import shipped_config


def test_oracles():
    """l = 2: WGA -.270671; SatImp at gamma .1; a mean over tokens."""
    preset = {k: v for k, v in load_yaml(shipped("configs") / "methods" / "wga.yaml").items() if k != "name"}
    for settings, value in ((preset, -0.270671), ({}, -0.1 * 2 * math.exp(-10) * (1 - math.exp(-2)))):
        term = SatImp(SatImp.Config(**settings)).loss_term(output([2.0], [2.0]), batch_of(2), step_context())
        assert term.per == "tokens" and term.sum.item() / 2 == pytest.approx(value, rel=1e-5)


def test_settings():
    assert shipped_config(SatImp) == SatImp.Config()
