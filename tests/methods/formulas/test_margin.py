"""Oracles of the GeRe card, section 13, and a loop in float64 that follows the card word by word."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.methods.formulas.margin import (
    at_precision,
    batch_margin,
    margin_losses,
    merged,
    moments_of,
    pack,
    row_margins,
    row_means,
    states,
    thresholds,
    unpack,
)

MEAN, STD = torch.zeros(3), torch.tensor([1, 2, 0.5])
P, N = MEAN + STD, MEAN - STD
REFERENCE = torch.tensor([[1.5, -0.3, -0.9], [0.2, 2.0, 0.1]])
CURRENT = torch.tensor([[0.4, 0.5, -0.2], [1.3, 2.5, -0.8]])


def losses(current=CURRENT, reference=REFERENCE, high=P, low=N):
    return margin_losses(current, states(reference, high, low), high, low)


def test_1_statistics():
    """Tokens [[1,2],[3,2],[5,8]]: mean [3,4], population variance [8/3, 8]; thresholds one deviation away."""
    moments = moments_of(torch.tensor([[1.0, 2], [3, 2], [5, 8]]))
    assert moments.count == 3 and moments.mean_D.tolist() == [3, 4]
    assert (moments.m2_D / 3).tolist() == pytest.approx([2.666667, 8], rel=1e-6)
    high, low = thresholds(moments)
    assert high.tolist() == pytest.approx([4.632993, 6.828427], rel=1e-6)
    assert low.tolist() == pytest.approx([1.367007, 1.171573], rel=1e-6)
    half, _ = thresholds(moments, 0.5)
    assert half.tolist() == pytest.approx([3 + 0.8164966, 4 + 1.4142136], rel=1e-6)


def test_2_value():
    """States [high, mid, low], [mid, high, mid] (2.0 = P is high); losses [[.6,0,.3],[.3,0,.3]]: 1.5 over 4 violators."""
    bits = unpack(states(REFERENCE, P, N), 3)
    assert bits[:, 0].tolist() == [[True, False, False], [False, True, False]]
    assert bits[:, 1].tolist() == [[False, False, True], [False, False, False]]
    assert losses().flatten().tolist() == pytest.approx([0.6, 0, 0.3, 0.3, 0, 0.3], abs=1e-7)
    assert row_margins(losses(), [2]).tolist() == pytest.approx([0.375], rel=1e-6)
    assert batch_margin(losses()).item() == pytest.approx(0.375, rel=1e-6)


def test_3_mask():
    """Without the second token 0.9 over 2 violators: 0.45."""
    assert row_margins(losses()[:1], [1]).tolist() == pytest.approx([0.45], rel=1e-6)


def test_rows_are_means_of_their_own_violations():
    """Row one 0.9 / 2, row two 0.6 / 2; together 1.5 / 4. A row without a violation is 0."""
    assert row_margins(losses(), [1, 1]).tolist() == pytest.approx([0.45, 0.3], rel=1e-6)
    assert row_margins(losses(REFERENCE), [1, 1]).tolist() == [0, 0]


def test_what_violates_nothing_divides_by_epsilon():
    """0 / (0 + 1e-8) is +0 and its derivative by every element +1e8: with 0 - 1e-8 it would be -0 and -1e8."""
    for reduced in (lambda l: row_margins(l, [2]).sum(), batch_margin):
        none = torch.zeros(2, 3, requires_grad=True)
        value = reduced(none)
        value.backward()
        assert value.item() == 0 and not value.signbit()
        assert none.grad.flatten().tolist() == pytest.approx([1e8] * 6, rel=1e-6)


def test_4_identity():
    current = REFERENCE.clone().requires_grad_()
    loss = row_margins(losses(current), [2]).sum()
    loss.backward()
    assert loss.item() == 0 and not current.grad.any()


def test_5_gradient():
    """Each of four violators gets 1/4 with the sign of its side; the others nothing."""
    current = CURRENT.clone().requires_grad_()
    row_margins(losses(current), [2]).sum().backward()
    assert current.grad.flatten().tolist() == pytest.approx([-0.25, 0, 0.25, 0.25, 0, -0.25], rel=1e-6)


def test_6_boundaries():
    """At P high, at N low (both inclusive); a middle activation that is now exactly P or N loses nothing, no gradient."""
    bits = unpack(states(torch.stack([P, N]), P, N), 3)
    assert bits[0, 0].all() and not bits[0, 1].any() and bits[1, 1].all() and not bits[1, 0].any()
    current = torch.stack([P, N]).requires_grad_()
    loss = losses(current, torch.zeros(2, 3))
    loss.sum().backward()
    assert not loss.any() and not current.grad.any()


def test_7_zero_deviation():
    """A feature that never varied is low and high: 2.7 is 0.7 above, 1.5 is 0.5 below the mean 2."""
    high = low = torch.tensor([2.0])
    found = losses(torch.tensor([[2.7], [1.5], [2.0]]), torch.full((3, 1), 2.0), high, low)
    assert found.flatten().tolist() == pytest.approx([0.7, 0.5, 0.0], rel=1e-6)


def test_11_feature_baselines():
    """Mean absolute and mean squared difference on oracle 2: 0.85 and 0.768333."""
    difference = CURRENT - REFERENCE
    assert row_means(difference.abs(), [2]).item() == pytest.approx(0.85, rel=1e-6)
    assert row_means(difference.square(), [2]).item() == pytest.approx(0.768333, rel=1e-6)


# ---- against a loop in float64 --------------------------------------------------------------------------------------
def by_loop(current, reference, high, low):
    total, count = 0.0, 0
    for h_D, r_D in zip(current.tolist(), reference.tolist(), strict=True):
        for h, r, p, n in zip(h_D, r_D, high.tolist(), low.tolist(), strict=True):
            l = 0.0
            if r <= n:
                l += max(0.0, h - n)
            if r >= p:
                l += max(0.0, p - h)
            if n < r < p:
                l += max(0.0, h - p) + max(0.0, n - h)
            total, count = total + l, count + (l != 0)
    return total / (count + 1e-8)


def drawn(seed, positions, features):
    g = torch.Generator().manual_seed(seed)
    reference = torch.randn(positions, features, generator=g) * 3 + 1
    current = reference + torch.randn(positions, features, generator=g)
    high, low = thresholds(moments_of(reference))
    return current, reference, high, low


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 19))
def test_equals_the_loop(seed, positions, features):
    current, reference, high, low = drawn(seed, positions, features)
    wide = [t.double() for t in (current, reference, high, low)]
    found = row_margins(losses(wide[0], reference, high, low), [positions]).item()
    assert found == pytest.approx(by_loop(*wide), rel=1e-6, abs=1e-12)
    assert row_margins(losses(current, reference, high, low), [positions]).item() == pytest.approx(
        found, rel=1e-5, abs=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_gradient_by_finite_differences(seed):
    current, reference, high, low = (t.double() for t in drawn(seed, 4, 9))
    codes = states(reference, high, low)
    edge = torch.minimum((current - high).abs(), (current - low).abs())
    current = torch.where(
        edge < 1e-3, current + 0.01, current
    ).requires_grad_()  # a hinge has no derivative at its corner

    def loss(h):
        return row_margins(margin_losses(h, codes, high, low), [3, 1]).sum()

    assert torch.autograd.gradcheck(loss, (current,), eps=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 33))
def test_14_bit_planes_equal_float_activations_bit_for_bit(seed, features):
    current, reference, high, low = drawn(seed, 5, features)
    is_high, is_low = reference >= high, reference <= low
    direct = torch.where(is_low, (current - low).clamp_min(0), 0) + torch.where(
        is_high, (high - current).clamp_min(0), 0
    )
    middle = (current - high).clamp_min(0) + (low - current).clamp_min(0)
    direct = torch.where(is_high | is_low, direct, middle)
    assert torch.equal(losses(current, reference, high, low), direct)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_packing_round_trip(seed, features):
    bits = torch.rand(3, 2, features, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 2, -(-features // 8))
    assert torch.equal(unpack(packed, features), bits)


def test_packing_by_hand():
    """Features 0 and 3 of byte 0, feature 8 in byte 1: 1 + 8 and 1. Two bits per feature: 512 bytes for 2,048 features."""
    bits = torch.zeros(9, dtype=torch.bool)
    bits[[0, 3, 8]] = True
    assert pack(bits).tolist() == [9, 1]
    assert states(torch.zeros(1, 2048), torch.ones(2048), -torch.ones(2048)).nbytes == 512


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 9), st.integers(0, 9))
def test_moments_merge_to_those_of_the_whole(seed, first, second):
    values = torch.randn(first + second, 3, generator=torch.Generator().manual_seed(seed))
    both = merged(moments_of(values[:first]), moments_of(values[first:]))
    whole = moments_of(values)
    assert both.count == whole.count
    assert torch.allclose(both.mean_D, whole.mean_D, rtol=1e-10, atol=1e-12)
    assert torch.allclose(both.m2_D, whole.m2_D, rtol=1e-10, atol=1e-12)


def test_moments_of_nothing():
    """No positions of three features: three zeros each, a deviation of 0 and not 0 / 0; added to a set they change no bit."""
    nothing, something = moments_of(torch.zeros(0, 3)), moments_of(torch.tensor([[-0.0, 0.1, 0.3], [-0.0, 0.2, 0.7]]))
    assert nothing.count == 0
    assert [t.tolist() for t in (nothing.mean_D, nothing.m2_D, nothing.std_D)] == [[0, 0, 0]] * 3
    assert merged(nothing, something) is something and merged(something, nothing) is something


def test_a_large_mean_keeps_its_digits():
    """Values 1e6 and 1e6 + 1: deviation 0.5, which E[x^2] - E[x]^2 in fp32 cannot see."""
    values = torch.tensor([[1e6], [1e6 + 1]])
    assert moments_of(values).std_D.item() == pytest.approx(0.5)
    assert (values.square().mean() - values.mean() ** 2).item() != pytest.approx(0.25, abs=0.1)


def test_states_and_counts_carry_no_gradient():
    current = CURRENT.clone().requires_grad_()
    assert not states(current, P, N).requires_grad and not moments_of(current).mean_D.requires_grad
    assert margin_losses(CURRENT.bfloat16(), states(REFERENCE, P, N), P, N).dtype == torch.float32


def test_values_at_a_precision_keep_their_gradient():
    """1 + 2^-9 is between two bf16 numbers and rounds to 1; the gradient of its square there is 2 x 1, not of what is lost."""
    value = torch.tensor([1 + 2**-9, -3.0], requires_grad=True)
    rounded = at_precision(value, torch.bfloat16)
    assert rounded.tolist() == [1.0, -3.0]
    rounded.square().sum().backward()
    assert value.grad.tolist() == [2.0, -6.0]
    exact = torch.randn(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(at_precision(exact, torch.float32), exact)
