"""A single changed bit of a frozen tensor is found."""

import pytest
import torch
from torch import nn

from mcit.core.errors import TrainingError
from mcit.models import frozen
from mcit.models.frozen import check_frozen, checksum, frozen_checksums
from tests.fakes.models import tiny_model


def test_by_hand():
    """Words 1 and 2 in the first chunk, weights 1 and 2 p + 1 = 4294967295, then an empty tail: 1 + 2 * 4294967295."""
    assert checksum(torch.tensor([1, 2])) == 1 + 2 * 4294967295
    assert checksum(torch.zeros(0)) == 0
    assert checksum(torch.tensor([5], dtype=torch.uint8)) == 15  # an empty chunk, then the tail with weight 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_every_place_and_every_bit_counts(dtype):
    generator = torch.Generator().manual_seed(0)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (size * 5,), generator=generator, dtype=torch.uint8)
    if dtype == torch.bool:
        raw = raw % 2
    before = checksum(raw.view(dtype))
    for byte in range(len(raw)):
        for bit in range(1 if dtype == torch.bool else 8):
            raw[byte] ^= 1 << bit
            assert checksum(raw.view(dtype)) != before
            raw[byte] ^= 1 << bit
    assert checksum(raw.view(dtype)) == before


def test_exchanged_entries_and_chunks_show(monkeypatch):
    value = torch.arange(12.0)
    assert checksum(value.flip(0)) != checksum(value)
    monkeypatch.setattr(frozen, "_CHUNK", 2)  # 6 words: 3 chunks
    assert checksum(value.roll(4)) != checksum(value)
    odd = torch.arange(13, dtype=torch.uint8)
    assert checksum(odd[1:]) == checksum(odd[1:].clone()) != checksum(odd[:-1])


def test_a_changed_frozen_tensor_or_buffer_is_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].requires_grad_(False)
    before = frozen_checksums(model)
    assert set(before) == {"1.weight", "1.bias", "buffer 1.running_mean", "buffer 1.running_var",
                           "buffer 1.num_batches_tracked"}  # fmt: skip
    with torch.no_grad():
        model[0].weight.add_(1)
    check_frozen(model, before, where="stage 01-x")
    model(torch.randn(4, 3))
    with pytest.raises(TrainingError, match="3 frozen tensor.*buffer 1.running_mean") as caught:
        check_frozen(model, before, where="stage 01-x")
    assert caught.value.where == "stage 01-x"


def test_scales_of_quantised_weights_are_guarded_too():
    for dtype, change in (("nf4", lambda w: w.quant_state.absmax), ("int8", lambda w: w.SCB)):
        model = tiny_model(dtype=dtype)
        before = frozen_checksums(model)
        check_frozen(model, before, where="s")
        weight = model.model.language_model.layers[0].mlp.up_proj.weight
        change(weight)[0] += 1
        with pytest.raises(TrainingError, match="1 frozen.*scale model.language_model.layers.0.mlp.up_proj"):
            check_frozen(model, before, where="s")
