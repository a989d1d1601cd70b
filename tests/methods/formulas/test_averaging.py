import pytest
import torch

from mcit.methods.formulas.averaging import dynamic_share, moving_average, towards_mean, within_unit


def t(*values):
    return torch.tensor(values)


def test_the_average_by_hand():
    """Shares .9 and .1 of 1 and 2: 1.1; none of the old is the new one, bit for bit."""
    assert moving_average(t(1.0), t(2.0), 0.9).item() == pytest.approx(1.1)
    now = torch.randn(100)
    assert torch.equal(moving_average(torch.randn(100) * 1e6, now, 0.0), now)


def test_a_constant_target_is_tracked_to_63_percent_after_100_steps_of_the_fallback():
    """1 - 0.99^100 = 0.633968."""
    average = t(0.0)
    for _ in range(100):
        average = moving_average(average, t(1.0), 0.99)
    assert average.item() == pytest.approx(0.633968, abs=1e-5)


def test_the_released_rule_by_hand():
    """w (4, -3), average 0, g (1, -1), g before (-1, 1): 2 * 3 / (7 * 4) = 0.2142857 of the new weights."""
    share = dynamic_share(t(4.0, -3.0), t(0.0, 0.0), t(1.0, -1.0), t(-1.0, 1.0), factor=2.0)
    assert share.item() == pytest.approx(0.2142857)
    new = moving_average(t(0.0, 0.0), t(4.0, -3.0), 1 - share)
    assert new.tolist() == pytest.approx([0.857143, -0.642857], abs=1e-6)


def test_the_papers_rule_by_hand():
    """The same with w before (3, -2.5): 3 * 1.5 / 28 = 0.1607143 of the old average."""
    share = dynamic_share(t(4.0, -3.0), t(0.0, 0.0), t(1.0, -1.0), t(-1.0, 1.0), before=t(3.0, -2.5))
    assert share.item() == pytest.approx(0.1607143)
    assert moving_average(t(0.0, 0.0), t(4.0, -3.0), share).tolist() == pytest.approx([3.357143, -2.517857], abs=1e-6)


@pytest.mark.parametrize("value", [3.0, 0.0, 1.0, float("nan"), -1.0, 0.5])
def test_a_share_outside_the_open_interval_falls_back(value):
    bad = value != 0.5
    share, fell = within_unit(torch.tensor(value), 0.01)
    assert bool(fell) is bad and share.item() == pytest.approx(0.01 if bad else 0.5)


def test_the_released_rule_falls_back_by_hand():
    """w (1, 1), average 0, g (1, -1), g before (1, 0): 2 * 3 / (2 * 1) = 3, so 0.01: the average is (0.01, 0.01)."""
    share = dynamic_share(t(1.0, 1.0), t(0.0, 0.0), t(1.0, -1.0), t(1.0, 0.0), factor=2.0)
    assert share.item() == 3.0
    share, _ = within_unit(share, 0.01)
    assert moving_average(t(0.0, 0.0), t(1.0, 1.0), 1 - share).tolist() == pytest.approx([0.01, 0.01])


def test_what_did_not_move_has_no_share():
    """0 / 0 and x / 0."""
    assert dynamic_share(t(1.0), t(1.0), t(1.0), t(1.0), before=t(1.0)).isnan()
    assert dynamic_share(t(1.0), t(1.0), t(1.0), t(2.0), before=t(0.0)).isinf()


def test_towards_the_mean_once_and_often():
    """0.9 * 2 + 0.1 * (1 + 0) / 2 = 1.85; thirteen times towards 0 leave 0.9 ** 13; no share changes no bit."""
    one = torch.tensor([2.0])
    assert towards_mean(one, torch.tensor([1.0]), 2, 0.1).item() == pytest.approx(1.85)
    assert towards_mean(one, torch.zeros(1), 3, 0.1, times=13).item() == pytest.approx(2 * 0.9**13)
    odd = torch.tensor([0.1, 1e-30, -7.3])
    assert torch.equal(towards_mean(odd, torch.ones(3), 1, 0.0), odd)
    assert torch.equal(towards_mean(odd, torch.ones(3), 1, 0.5, times=0), odd)
