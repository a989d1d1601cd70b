import pytest
import torch

from mcit.core.errors import TrainingError
from mcit.engine.transfer import placeholders_counted, to_device
from tests.fakes.device import DEVICE, device
from tests.fakes.models import tiny_model
from tests.fakes.toy import toy_batch


def test_copies_to_a_device_are_pinned_and_nobody_waits():
    value = torch.arange(3)
    assert to_device(value, torch.device("cpu")) is value
    with device() as fake:
        there = to_device(value, DEVICE)
        assert to_device(there, DEVICE) is there and fake.waits == []
        value.to(DEVICE)
        assert fake.waits == ["a copy of (3,) that is not pinned"]


def test_a_wrong_number_of_placeholders_is_still_refused():
    model = tiny_model()
    batch = toy_batch(model)
    ids = batch.input_ids_BT.clone()
    own = model.model.get_placeholder_mask
    with placeholders_counted(model, batch.input_ids_BT):
        right = model(input_ids=ids, attention_mask=batch.attention_BT, **batch.pixels).logits
    assert torch.equal(right, model(input_ids=ids, attention_mask=batch.attention_BT, **batch.pixels).logits)
    ids[0, 2] = 1
    with (
        placeholders_counted(model, ids),
        pytest.raises(TrainingError, match="63 picture tokens for 64 picture features"),
    ):
        model(input_ids=ids, attention_mask=batch.attention_BT, **batch.pixels)
    assert model.model.get_placeholder_mask == own
