"""Gaussians of features and the head that is aligned on their samples."""

import pytest
import torch

from mcit.routers.formulas.gaussians import JITTER, aligned, gaussian, nearest_mean_head, samples


def drawing(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mean_and_covariance_by_hand():
    """Rows (0, 0), (2, 4): mean (1, 2), off (-1, -2) and (1, 2); over n - 1 = 1: [[2, 4], [4, 8]]."""
    assert JITTER == 1e-4
    x_ND = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    mean_D, full = gaussian(x_ND, diagonal=False)
    assert mean_D.tolist() == [1, 2]
    assert torch.allclose(full, torch.tensor([[2 + JITTER, 4.0], [4.0, 8 + JITTER]]))
    assert torch.allclose(gaussian(x_ND, diagonal=True)[1], full.diagonal())
    assert torch.allclose(gaussian(x_ND[:1], diagonal=False)[1], JITTER * torch.eye(2))


def test_the_covariance_of_three_rows_is_over_two():
    """Rows 0, 1, 5: mean 2, squares 4 + 1 + 9 = 14."""
    x_ND = torch.tensor([[0.0], [1.0], [5.0]])
    for diagonal in (False, True):
        assert gaussian(x_ND, diagonal=diagonal)[1].item() == pytest.approx(7 + JITTER, rel=1e-6)


def test_samples_are_the_mean_plus_the_root_of_the_covariance_times_what_is_drawn():
    mean_D, covariance = torch.tensor([3.0, -1.0]), torch.tensor([[4.0, 2.0], [2.0, 2.0]])
    z_ND = torch.randn(3, 2, dtype=torch.float64, generator=drawing())
    by_hand = mean_D + z_ND @ torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(samples(mean_D, covariance, 3, drawing()), by_hand.float())
    thin = mean_D + z_ND * torch.tensor([2.0, 0.5], dtype=torch.float64)
    assert torch.allclose(samples(mean_D, torch.tensor([4.0, 0.25]), 3, drawing()), thin.float())


def test_samples_have_the_moments_and_depend_on_the_generator_alone():
    mean_D, covariance = torch.tensor([3.0, -1.0]), torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    drawn = samples(mean_D, covariance, 20000, drawing())
    assert torch.allclose(drawn.mean(0), mean_D, atol=0.05) and torch.allclose(
        torch.cov(drawn.T), covariance, atol=0.06
    )
    state = torch.get_rng_state()
    assert torch.equal(samples(mean_D, covariance, 5, drawing(1)), samples(mean_D, covariance, 5, drawing(1)))
    assert torch.equal(torch.get_rng_state(), state)
    thin = samples(mean_D, torch.tensor([4.0, 0.01]), 20000, drawing())
    assert torch.allclose(thin.std(0), torch.tensor([2.0, 0.1]), rtol=0.03)


def logits(head, x_ND):
    return (x_ND - head["shift"]) / head["scale"] @ head["weight"].T + head["bias"]


def test_the_head_begins_as_the_nearest_mean():
    """Differences of logits are half those of squared distances in units of the pooled deviation."""
    means, x_ND = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    head = nearest_mean_head(means, torch.tensor([4.0, 1.0]).expand(3, 2))
    away = ((x_ND[:, None] - means) / torch.tensor([2.0, 1.0])).square().sum(2)
    found = logits(head, x_ND)
    assert torch.allclose(found - found[:, :1], -(away - away[:, :1]) / 2, atol=1e-5)


def test_one_step_of_alignment_by_hand():
    """Two classes without spread at -1 and 1: p of the right class is 1 / (1 + e^-2) in the first batch of both."""
    classes = [(torch.tensor([-1.0]), torch.tensor([0.0])), (torch.tensor([1.0]), torch.tensor([0.0]))]
    head = nearest_mean_head(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    made = aligned(head, classes, drawing(), epochs=1, count=1, lr=0.5, momentum=0.0, decay=0.0)
    # each batch is one sample; the first moves weights by lr (1 - p) x and bias by lr (1 - p)
    wrong = 1 - 1 / (1 + torch.exp(torch.tensor(-2.0)))
    first = torch.randperm(2, generator=_after_samples())[0].item()
    x, sign = (-1.0, 1.0)[first], (1.0, -1.0) if first == 0 else (-1.0, 1.0)
    weight, bias = head["weight"].clone(), head["bias"].clone()
    for k in (0, 1):
        weight[k] += 0.5 * wrong * sign[k] * x
        bias[k] += 0.5 * wrong * sign[k]
    second = 1 - first
    p = torch.softmax(weight[:, 0] * (1.0, -1.0)[first] + bias, 0)
    p[second] -= 1
    assert torch.allclose(made["weight"][:, 0], weight[:, 0] - 0.5 * p * (1.0, -1.0)[first], atol=1e-6)
    assert torch.allclose(made["bias"], bias - 0.5 * p, atol=1e-6)


def test_rate_momentum_and_decay_by_hand():
    """One class is certain, so decay alone acts: v = .1 w, then .9 v + .1 w; the rate is .5, then .25."""
    head = {
        "weight": torch.tensor([[2.0]]),
        "bias": torch.tensor([4.0]),
        "shift": torch.zeros(1),
        "scale": torch.ones(1),
    }
    still = [(torch.zeros(1), torch.zeros(1))]
    made = aligned(head, still, drawing(), epochs=2, count=1, lr=0.5, momentum=0.9, decay=0.1)
    assert made["weight"].item() == pytest.approx(1.8075) and made["bias"].item() == pytest.approx(2 * 1.8075)


def test_alignment_measures_samples_in_the_units_of_the_head():
    """Features four times as large, with shift and scale: the same weights, bit for bit."""
    means, spread = torch.tensor([[-1.0, 0.5], [1.0, 2.0]]), torch.tensor([0.5, 2.0])
    made = []
    for unit in (1.0, 4.0):
        head = nearest_mean_head(unit * means, (unit**2 * spread).expand(2, 2))
        classes = [(unit * mean_D, unit**2 * spread) for mean_D in means]
        made.append(aligned(head, classes, drawing(), epochs=2, count=4, lr=0.5))
    assert torch.equal(made[0]["weight"], made[1]["weight"]) and torch.equal(made[0]["bias"], made[1]["bias"])


def _after_samples():
    generator = drawing()
    for _ in range(2):
        torch.randn(1, 1, dtype=torch.float64, generator=generator)
    return generator


def test_alignment_learns_what_features_have_in_common():
    """Two features with correlation 0.95, means (0, 0) and (1, 0): 69 % are right by deviations alone, at best 95 %."""
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
    classes = [(torch.tensor([0.0, 0.0]), covariance), (torch.tensor([1.0, 0.0]), covariance)]
    head = nearest_mean_head(torch.stack([m for m, _ in classes]), torch.ones(2, 2))
    made = aligned(head, classes, drawing(), epochs=30, count=240, lr=0.2)
    test = [samples(*one, 4000, drawing(7)) for one in classes]

    def right(given):
        return sum(float((logits(given, x_ND).argmax(1) == k).float().mean()) for k, x_ND in enumerate(test)) / 2

    assert right(head) == pytest.approx(0.69, abs=0.02) and right(made) == pytest.approx(0.945, abs=0.015)
    assert aligned(head, classes, drawing(), epochs=0, count=8, lr=1.0)["weight"].equal(head["weight"])
