import torch

from mcit.analytic.detector import fit, probability
from mcit.analytic.head import RowHead


def clouds(n=40, d=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, d, generator=generator)
    y = torch.arange(2 * n) % 2
    x[y == 1, 0] += 6
    return x, y.float()


def test_the_network_tells_them_apart_and_is_a_function_of_its_arguments():
    x, y = clouds()
    given = {"width": 16, "steps": 150, "lr": 1e-2, "seed": 3}
    with torch.no_grad():
        tensors = fit(x, y, **given)
    held, truth = clouds(seed=1)
    assert float(((probability(tensors, held) >= 0.5).float() == truth).float().mean()) > 0.9
    again = fit(x, y, **given)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors) and not tensors["in"].requires_grad


def test_few_rows_to_forget_weigh_as_much_as_many_retained_ones():
    x, y = clouds(n=200)
    keep, forget = x[y == 0], x[y == 1][:8]
    tensors = fit(
        torch.cat([keep, forget]), torch.cat([torch.zeros(200), torch.ones(8)]), width=16, steps=150, lr=1e-2, seed=0
    )
    assert float((probability(tensors, x[y == 1][8:]) >= 0.5).float().mean()) > 0.9


def test_a_ridge_head_is_read_by_its_second_column():
    head, x = RowHead(gamma=0.1, bits=10), torch.eye(4)
    head.learn("keep", x[:2], ["a", "b"])
    head.learn("forget", x[2:], ["c", "d"])
    found = probability({"weight": head.weight()}, x)
    assert (found >= 0.5).tolist() == [False, False, True, True] and 0 <= float(found.min()) <= float(found.max()) <= 1
