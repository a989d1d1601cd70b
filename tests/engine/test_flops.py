import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mcit.engine import flops
from mcit.engine.flops import FlopCount, matmul_rate


def test_a_linear_layer_forward_and_backward():
    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    with FlopCount() as count:
        out = layer(x)
    assert count.flops == 2 * 7 * 3 * 5
    with FlopCount() as count:
        out.sum().backward()
    assert count.flops == 2 * 2 * 7 * 3 * 5  # for the input and for the weight


def test_a_product_of_onednn_is_counted_as_torch_s_own():
    x, weight = torch.randn(32, 3), torch.randn(5, 3)
    with FlopCount() as count:
        torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    assert count.flops == 2 * 32 * 3 * 5


def test_attention_on_a_cpu_is_counted_too():
    q, k, v = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    with FlopCount() as count:
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
    assert count.flops == 2 * (2 * 2 * 4 * 6 * 6 * 8)
    with FlopCount() as count:
        out.sum().backward()
    assert count.flops == 5 * (
        2 * 2 * 4 * 6 * 6 * 8
    )  # scores once more, and two gradients for each of the two products


def test_counting_changes_no_bit():
    def run(counted):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.GELU(), torch.nn.Linear(16, 1)
        )
        with FlopCount() if counted else torch.enable_grad():
            model(torch.randn(4, 8)).sum().backward()
        return [p.grad for p in model.parameters()] + [torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


def test_the_rate_is_that_of_the_machine_and_draws_nothing():
    state = torch.get_rng_state()
    rate = matmul_rate(torch.device("cpu"), torch.float32, size=256, repeats=3)
    assert 1e8 < rate < 1e14 and torch.equal(state, torch.get_rng_state())
    with pytest.raises(RuntimeError):
        matmul_rate(torch.device("cpu"), torch.bool, size=4)


def test_attention_over_sequences_of_unlike_length():
    """What FlashAttention's kernel for packs is counted as: SDPA of every sequence by itself; its backward pass 2.5 times."""
    q, ends, keys = torch.randn(7, 4, 8), torch.tensor([0, 3, 7]), torch.tensor([0, 5, 9])
    one = 2 * (2 * 4 * 8 * (3 * 5 + 4 * 4))
    assert flops._varlen(q, None, None, ends, keys, 4, 5) == one
    assert flops._varlen_backward(q, q, None, None, q, None, ends, keys, 4, 5) == 2.5 * one
