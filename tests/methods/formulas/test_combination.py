"""How losses of task rows and general rows add up: oracles 8 and 9 of the GeRe card."""

import math

import pytest

from mcit.methods.formulas.combination import LossWeight, combined, dynamic_weight, shares


def test_8_combination():
    """CE_G 3.2, CE_T 0.8, TM 0.02: halves with w = 1 give 2.02, w = 100 gives 4; dynamic w 99.99995 gives 4."""
    ce = combined(0.8, 3.2)
    task, general = shares(60, 6, "halves")
    assert ce == 2.0 and task * 0.8 + general * 3.2 == pytest.approx(2.0)
    assert ce + 1 * 0.02 == pytest.approx(2.02) and ce + 100 * 0.02 == pytest.approx(4.0)
    weight = dynamic_weight(ce, 0.02, limit=1000)
    assert weight == pytest.approx(99.99995, rel=1e-7) and ce + weight * 0.02 == pytest.approx(3.999999, rel=1e-7)
    assert combined(None, 3.2) + 100 * 0.02 == pytest.approx(5.2) and combined(0.8, None) == 0.8
    assert shares(0, 6, "halves") == (0, 1) and shares(60, 0, "halves") == (1, 0)


def test_shares_by_rows_are_the_mean_over_one_row_batches():
    """60 task rows and 6 general ones: 10/11 and 1/11; the sum leaves both whole."""
    assert shares(60, 6, "rows") == pytest.approx((10 / 11, 1 / 11))
    assert shares(60, 6, "sum") == (1, 1) and shares(60, 0, "sum") == (1, 0) and shares(0, 3, "rows") == (0, 1)
    one_row = [shares(1, 1, "sum"), shares(1, 0, "rows"), shares(0, 1, "rows")]
    assert one_row == [(1, 1), (1, 0), (0, 1)]


def test_9_dynamic_weight_is_bounded():
    """CE 2, TM 1e-6: 2 / 1.01e-6 = 1,980,198 without a limit."""
    assert dynamic_weight(2.0, 1e-6, limit=math.inf) == pytest.approx(1_980_198, rel=1e-6)
    assert dynamic_weight(2.0, 1e-6, limit=1000.0) == 1000.0


def test_a_weight_follows_the_last_step_and_does_not_begin_at_its_limit():
    """At the base TM is 0: CE 2 over it is at the limit and not taken; 2 / 0.5 is; later the limit is a weight like others."""
    weight = LossWeight("dynamic", 1000.0)
    seen = [weight.now]
    for margin in (0.0, 0.5, 0.0):
        weight.follow(2.0, margin)
        seen.append(weight.now)
    assert seen == [1.0, 1.0, pytest.approx(4.0), 1000.0]
    assert LossWeight(100, 1000.0).now == 100.0
