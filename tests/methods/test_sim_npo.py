import pytest

from mcit.methods.sim_npo import SimNPO
from tests.fakes.forgetting import batch_of, step_context
from tests.fakes.settings import refused, shipped_config
from tests.methods.test_npo import output, real


def loss(*rows, **settings):
    term = SimNPO(SimNPO.Config(**settings)).loss_term(real(output(*rows)), batch_of(len(rows)), step_context())
    assert term.per == "rows"
    return term.sum.item()


def test_oracles():
    """S = 6 over T = 4: 5.2009e-4; S = 0: .308065; summed over rows; delta moves the point; gamma .125."""
    assert loss([1.0, 2.0, 3.0, 0.0], [0.0], gamma=1.0) == pytest.approx(5.2009e-4 + 0.308065, rel=1e-5)
    assert loss([1.5], delta=1.5, gamma=1.0) == pytest.approx(0.308065, rel=1e-5)
    assert loss([0.0]) == pytest.approx(0.125 * 0.308065, rel=1e-5)


def test_settings():
    assert shipped_config(SimNPO) == SimNPO.Config() and refused(SimNPO, beta=0.0) == ["beta"]
