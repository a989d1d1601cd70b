import math

import pytest
import torch

from mcit.methods.formulas.groups import (
    change_norm2,
    group_norm,
    negligible,
    shrink_factor,
    size_weight,
    stepped_alpha,
)


def matrices(*norms):
    """Matrices of several shapes with these Frobenius norms."""
    shapes = [(1, 1), (2, 2), (3, 1), (2, 5)]
    return [torch.full(shape, n / math.sqrt(shape[0] * shape[1])) for n, shape in zip(norms, shapes, strict=False)]


def test_group_norm_is_the_root_of_the_sum_of_squares():
    """Oracle 1: Frobenius norms 3, 4, 12 and 0 make 13, not the sum 19 that the authors log."""
    assert float(group_norm(matrices(3, 4, 12, 0))) == pytest.approx(13, rel=1e-6)


def test_subgradient_by_hand():
    """Oracle 5: theta (3, 4), alpha 0.1: gradient (0.06, 0.08), over two matrices as over one."""
    split = [torch.tensor([[3.0]], requires_grad=True), torch.tensor([[4.0]], requires_grad=True)]
    (0.1 * group_norm(split)).backward()
    assert [t.grad.item() for t in split] == pytest.approx([0.06, 0.08])


def test_sgd_on_the_subgradient_overshoots():
    """Oracle 5: theta (0.3, 0.4), lr 0.1, alpha 20: one SGD step to (-0.9, -1.2), norm 0.5 to 1.5; the proximal step to 0."""
    theta = torch.tensor([0.3, 0.4], requires_grad=True)
    (20 * group_norm([theta])).backward()
    moved = theta.detach() - 0.1 * theta.grad
    assert moved.tolist() == pytest.approx([-0.9, -1.2], rel=1e-6) and float(moved.norm()) == pytest.approx(1.5)
    assert shrink_factor(0.5, 0.1 * 20) == 0


def test_no_nan_at_zero():
    """A group, or a matrix in it, that is exactly 0 has gradient 0."""
    zero, other = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    group_norm([zero]).backward()
    assert not zero.grad.any() and torch.isfinite(zero.grad).all()
    zero.grad = None
    group_norm([zero, other]).backward()
    assert not zero.grad.any() and other.grad.flatten().tolist() == [0.5] * 4


def test_proximal_step_by_hand():
    """Oracle 6: theta (3, 4): threshold 1 gives (2.4, 3.2), 5 and 6 give 0, and 0 stays 0."""
    assert [shrink_factor(5.0, 1) * x for x in (3, 4)] == pytest.approx([2.4, 3.2])
    assert shrink_factor(5.0, 5) == shrink_factor(5.0, 6) == shrink_factor(0.0, 1) == shrink_factor(0.0, 0) == 0
    assert shrink_factor(5.0, 0) == 1


@pytest.mark.parametrize(("alpha", "steps"), [(10, 24), (1e-2, 23_090)])
def test_steps_to_zero(alpha, steps):
    """Oracle 7: norm 2.309 and lr 1e-2 take 24 steps at alpha 10 and 23 090 at alpha 1e-2."""
    norm, count = 2.309, 0
    while norm > 1e-9:  # 23 090 differences of 1e-4 leave a rest of rounding
        norm, count = norm * shrink_factor(norm, 1e-2 * alpha), count + 1
    assert count == steps


def test_adam_takes_a_full_step_from_a_tiny_penalty_gradient():
    """Oracle 8: gradient 1e-6 and eps 1e-8: Adam's first step is 0.990 lr, SGD's 1e-6 lr."""
    adam, sgd = (torch.zeros(1, requires_grad=True) for _ in range(2))
    adam.grad, sgd.grad = torch.tensor([1e-6]), torch.tensor([1e-6])
    torch.optim.Adam([adam], lr=0.1, eps=1e-8).step()
    torch.optim.SGD([sgd], lr=0.1).step()
    assert -adam.item() / 0.1 == pytest.approx(0.990, abs=1e-3) and -sgd.item() / 0.1 == pytest.approx(1e-6)


def test_start_norms():
    """Oracle 9: rank 8 with torch's Kaiming slope sqrt 5: a matrix A has norm sqrt(8/3) = 1.633, a block of two 2.309."""
    torch.manual_seed(0)
    pair = [torch.empty(8, 4096) for _ in range(2)]
    for a in pair:
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    assert float(group_norm(pair[:1])) == pytest.approx(1.633, rel=0.01)
    assert float(group_norm(pair)) == pytest.approx(2.309, rel=0.01)
    for a in pair:
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(50))
    assert float(group_norm(pair[:1])) == pytest.approx(0.560, rel=0.01)
    assert float(group_norm(pair)) == pytest.approx(0.792, rel=0.01)


def test_alpha_is_a_step():
    """Oracle 15: from epoch 20: 0 in epoch 19, the whole alpha in epoch 20; 480 rows of 48 a step are ten steps an epoch."""
    given = {"batch": 48, "rows": 480, "from_epoch": 20}
    assert [stepped_alpha(0.01, step=s, **given) for s in (0, 199, 200, 201)] == [0, 0, 0.01, 0.01]
    assert stepped_alpha(0.01, step=0, batch=48, rows=480, from_epoch=0) == 0.01
    assert stepped_alpha(2.0, step=24, batch=4, rows=99, from_epoch=1) == 0  # 96 of 99 rows seen
    assert stepped_alpha(2.0, step=25, batch=4, rows=99, from_epoch=1) == 2.0


def test_size_weights():
    """Sizes 1 and 3 have mean 2: sqrt(1/2) and sqrt(3/2); equal sizes weigh 1."""
    assert [size_weight(p, [1, 3]) for p in (1, 3)] == pytest.approx([math.sqrt(0.5), math.sqrt(1.5)])
    assert size_weight(7, [7, 7, 7]) == 1


def test_pruning_share():
    """Oracle 16: changes of norm 1.0, 0.009 and 0.5 at 1 %: one of three goes."""
    assert negligible({"a": 1.0, "b": 0.009, "c": 0.5}, 1e-2) == ["b"]
    assert negligible({"a": 1.0, "b": 0.01}, 1e-2) == []
    assert negligible({"a": 0.0, "b": 0.0}, 1e-2) == ["a", "b"] and negligible({}, 0.5) == []


def test_change_is_of_the_product():
    """Oracle 17: halving A and B quarters the change of the weights and halves the norm of both."""
    torch.manual_seed(1)
    b, a = torch.randn(5, 2), torch.randn(2, 7)
    whole = float(change_norm2(b, a, 2.0)) ** 0.5
    assert whole == pytest.approx(float((2 * b @ a).norm()), rel=1e-5)
    assert float(change_norm2(b / 2, a / 2, 2.0)) ** 0.5 == pytest.approx(whole / 4, rel=1e-5)
    assert float(group_norm([b / 2, a / 2])) == pytest.approx(float(group_norm([b, a])) / 2, rel=1e-6)


def test_zero_is_absorbing_for_gradients():
    """Oracle 10: with A = B = 0 both gradients of any loss are exactly 0; with B = 0 alone only A's is."""
    for a, grows in ((torch.zeros(2, 3), False), (torch.ones(2, 3), True)):
        A, B = a.clone().requires_grad_(), torch.zeros(4, 2, requires_grad=True)
        ((torch.ones(5, 3) @ A.T @ B.T - 1) ** 2).sum().backward()
        assert not A.grad.any() and bool(B.grad.any()) == grows
