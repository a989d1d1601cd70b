from types import SimpleNamespace

import torch

from mcit.core.tensorstore import HostTensors
from mcit.core.types import WeightUnit
from mcit.methods.formulas.importances import add_squares, loss_on, matrices, matrix
from tests.fakes.forgetting import batch_of, output
from tests.fakes.steps import unit

WHOLE = WeightUnit("a.mlp.up.weight", "tensor", {"weight": "a.mlp.up.weight"}, (1, 1))


def test_a_pair_and_a_whole_weight_have_one_name():
    assert matrix(unit("a.mlp.up")) == matrix(WHOLE) == "a.mlp.up"


def test_matrices_by_ending():
    half = WeightUnit("b.up", "lora", {"A": "b.up.lora_A"}, ())
    ctx = SimpleNamespace(weights=SimpleNamespace(units=lambda: [WHOLE, unit("a.mlp.down"), half]))
    assert [u.name for u in matrices(ctx, [])] == ["a.mlp.up.weight", "a.mlp.down"]
    assert [u.name for u in matrices(ctx, ["mlp.up"])] == ["a.mlp.up.weight"] and not list(matrices(ctx, ["p"]))


def test_squares_of_rows_and_of_batch_means():
    """Gradients 1 and 3: the mean of squares is 5, the square of the mean 4."""
    for size, gradients, mean in ((1, [1.0, 3.0], 5.0), (2, [2.0], 4.0)):
        store = HostTensors()
        ctx = SimpleNamespace(gradient_pass=gradient_pass_of(gradients, size))
        count = add_squares(ctx, [0, 1], [WHOLE], size=size, store=store, kind="squares")
        assert float(store.require("squares", "a.mlp.up")) / count == mean


def gradient_pass_of(gradients, size):
    def gradient_pass(given, *, rows, effective):
        assert rows == size and effective
        for g in gradients:
            yield None, SimpleNamespace(effective=lambda u, g=g: torch.tensor([[g]]))

    return gradient_pass


def test_a_loss_per_token():
    ctx = SimpleNamespace(
        forward_pass=lambda rows: iter([(batch_of(1), output([1.0, 2.0])), (batch_of(1), output([9.0, 8.0]))])
    )
    assert loss_on(ctx, []) == 20 / 4
