"""Every loss again, element by element in float64, and its gradient by central differences; random inputs (hypothesis)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.methods.formulas import divergence, forgetting, groups, lowrank, margin, prototypes

FAST = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10**6)


def draw(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def checked(loss, expected, *inputs):
    """Value against the slow reference, and the gradient of the value against central differences of the reference."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    assert value.item() == pytest.approx(expected(*inputs), rel=1e-6, abs=1e-12)
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    for k, x in enumerate(inputs):
        grad = torch.zeros_like(x) if grads[k] is None else grads[k]
        for i in range(x.numel()):
            step = 1e-6 * max(1.0, abs(float(x.view(-1)[i])))
            sides = []
            for sign in (1, -1):
                moved = x.clone()
                moved.view(-1)[i] += sign * step
                sides.append(expected(*inputs[:k], moved, *inputs[k + 1 :]))
            slope = (sides[0] - sides[1]) / (2 * step)
            assert float(grad.flatten()[i]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def kl(p_logits, q_logits, temperature=1.0):
    p, q = (softmax([v / temperature for v in logits]) for logits in (p_logits, q_logits))
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


# ---- GS-LoRA --------------------------------------------------------------------------------------------------------
ROWS = [0, 0, 0, 1, 2, 2]
PUSHED = [True, True, False, True, False, False]


@FAST
@given(SEEDS)
def test_bound_per_token(seed):
    nll, bound = draw(seed, 6).abs() * 3, draw(seed + 1, 6).abs() * 3

    def slow(values):
        return sum(max(0.0, float(b) - float(v)) for v, b, p in zip(values, bound, PUSHED, strict=True) if p)

    checked(lambda x: forgetting.token_bound(x, bound, torch.tensor(PUSHED)), slow, nll)


@FAST
@given(SEEDS)
def test_bound_per_row(seed):
    """Row 2 has no pushed token and adds nothing."""
    nll, bound = draw(seed, 6).abs() * 3, draw(seed + 1, 3).abs() * 3

    def slow(values):
        total = 0.0
        for row in range(3):
            mine = [float(v) for v, r, p in zip(values, ROWS, PUSHED, strict=True) if r == row and p]
            total += max(0.0, float(bound[row]) - sum(mine) / len(mine)) if mine else 0.0
        return total

    checked(lambda x: forgetting.row_bound(x, torch.tensor(ROWS), bound, torch.tensor(PUSHED)), slow, nll)


@FAST
@given(SEEDS, st.floats(0.1, 5))
def test_bound_per_batch(seed, bound):
    checked(
        lambda x: forgetting.batch_bound(x, bound),
        lambda x: max(0.0, bound - sum(map(float, x)) / len(x)),
        draw(seed, 5).abs() * 3,
    )


@FAST
@given(SEEDS)
def test_norm_of_a_group(seed):
    def slow(*matrices):
        return math.sqrt(sum(float(v) ** 2 for m in matrices for v in m.flatten()))

    checked(lambda *m: groups.group_norm(m), slow, draw(seed, 2, 3), draw(seed + 1, 3, 2))


@FAST
@given(SEEDS, st.floats(0.1, 4))
def test_change_of_a_pair(seed, scale):
    def slow(B, A):
        return sum((scale * sum(float(B[o, r] * A[r, i]) for r in range(2))) ** 2 for o in range(3) for i in range(4))

    checked(lambda B, A: groups.change_norm2(B, A, scale), slow, draw(seed, 3, 2), draw(seed + 1, 2, 4))


@FAST
@given(SEEDS, st.sampled_from(["cosine", "l2", "kl"]))
def test_distance_from_a_prototype(seed, kind):
    prototype = draw(seed + 1, 2, 4)

    def one(e, p):
        if kind == "l2":
            return sum((a - b) ** 2 for a, b in zip(e, p, strict=True)) / len(e)
        if kind == "kl":
            return kl(p, e)
        dot = sum(a * b for a, b in zip(e, p, strict=True))
        return 1 - dot / math.sqrt(sum(a * a for a in e) * sum(b * b for b in p))

    def slow(e):
        return sum(one(a, b) for a, b in zip(e.tolist(), prototype.tolist(), strict=True))

    checked(lambda e: prototypes.distances(e, prototype, kind).sum(), slow, draw(seed, 2, 4))


# ---- LwF, GeRe's variants, L2 ---------------------------------------------------------------------------------------
@FAST
@given(SEEDS, st.floats(0.5, 4))
def test_distillation(seed, temperature):
    teacher = draw(seed + 1, 2, 5)

    def slow(student):
        pairs = zip(student.tolist(), teacher.tolist(), strict=True)
        return sum(temperature**2 * kl(t, s, temperature) for s, t in pairs)

    checked(lambda s: divergence.distillation_kl(s, teacher, temperature).sum(), slow, draw(seed, 2, 5))


@FAST
@given(SEEDS, st.floats(0.5, 4), st.integers(1, 6))
def test_logits_of_the_likeliest_tokens(seed, temperature, count):
    """K kept tokens and the rest as one; K = 6 is the whole vocabulary."""
    teacher = draw(seed + 1, 1, 6)
    p = softmax([v / temperature for v in teacher[0].tolist()])
    kept = sorted(range(6), key=lambda i: -p[i])[:count]
    rest = [i for i in range(6) if i not in kept]

    def slow(student):
        q = softmax([v / temperature for v in student[0].tolist()])
        total = sum(p[i] * (math.log(p[i]) - math.log(q[i])) for i in kept)
        left_p, left_q = (sum(x[i] for i in rest) for x in (p, q))
        return total + (left_p * (math.log(left_p) - math.log(left_q)) if rest else 0.0)

    ids, log_p = divergence.top_log_probs(teacher, count, temperature)
    checked(lambda s: divergence.top_kl(s, ids, log_p, temperature).sum(), slow, draw(seed, 1, 6))


@FAST
@given(SEEDS, st.sampled_from([1, 2]))
def test_feature_differences(seed, power):
    """Rows of 1 and 3 positions: each row's own mean of |h - h*| or its square."""
    reference = draw(seed + 1, 4, 3)

    def slow(h):
        sizes = [
            [abs(float(a - b)) ** power for a, b in zip(x, y, strict=True)] for x, y in zip(h, reference, strict=True)
        ]
        return sum(sizes[0]) / 3 + sum(sum(s) for s in sizes[1:]) / 9

    def loss(h):
        difference = h - reference
        return margin.row_means(difference.abs() if power == 1 else difference.square(), [1, 3]).sum()

    checked(loss, slow, draw(seed, 4, 3))


@FAST
@given(SEEDS)
def test_distance_of_products(seed):
    B0, A0 = draw(seed + 2, 3, 2), draw(seed + 3, 2, 4)

    def slow(B, A):
        return sum(
            sum(float(B[o, r] * A[r, i] - B0[o, r] * A0[r, i]) for r in range(2)) ** 2
            for o in range(3)
            for i in range(4)
        )

    checked(lambda B, A: lowrank.product_distance2(B, A, B0, A0), slow, draw(seed, 3, 2), draw(seed + 1, 2, 4))
