import gc

import pytest
import torch

from mcit.core.schema import BaseConfig
from mcit.data.encode import Encoder
from mcit.data.folder import DataFolder
from mcit.engine.estimate.activations import MicroBatch, PeakBytes, activations
from mcit.models.load import load_processor, materialize
from tests.fakes.bench import plan_of
from tests.fakes.measure import both, skeleton_of
from tests.fakes.models import tiny_path


def test_peak_counts_storages_once_and_sees_them_go():
    """x has 4,000 bytes, a view none, y 4,000 more: 8,000 at most, 4,000 when y is gone; older ones do not count."""
    old = torch.zeros(1000)
    with PeakBytes([old]) as counter:
        x = torch.zeros(1000)
        x.view(10, 100)
        y = x + old
        assert (counter.now, counter.peak) == (8000, 8000)
        del y
        gc.collect()
        assert (counter.now, counter.peak) == (4000, 8000)
        old.mul_(2)
        assert counter.now == 4000
    del x


def tiny_rows(count):
    plan = plan_of()
    return list(DataFolder.open(plan.tasks[0].folder).rows("train"))[:count]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype", "attention", "rows"),
    [
        ("lora", "fp32", "sdpa", 2),
        ("lora", "fp32", "sdpa", 8),
        ("lora", "bf16", "sdpa", 8),
        ("lora", "fp32", "eager", 4),
        ("lora alone", "bf16", "eager", 4),
        ("full", "fp32", "sdpa", 8),
        ("full", "bf16", "sdpa", 4),
    ],
)
def test_peak_is_within_a_tenth_of_what_the_engine_uses(kind, dtype, attention, rows, checkpointing):
    encoder = Encoder(load_processor(tiny_path()))
    options = {"dtype": dtype, "attention": attention, "checkpointing": checkpointing}
    (forward, peak), found = both(tiny_path(), encoder, tiny_rows(rows), kind, **options)
    assert found.traced, found.why
    assert found.peak == pytest.approx(peak, rel=0.10)
    assert found.forward == pytest.approx(forward, rel=0.10 if not checkpointing else 0.30)  # mask, of 0.1 MB


def test_a_long_decoder_is_continued_from_a_short_one():
    """Twelve layers run whole and continued from six give the same numbers."""
    from transformers import AutoConfig

    from mcit.engine.estimate import activations as module
    from mcit.models.text import auto_class_of
    from tests.fakes.measure import place

    def skeleton():
        config = AutoConfig.from_pretrained(tiny_path())
        config.text_config.num_hidden_layers = 12
        config.text_config.layer_types = None
        with torch.device("meta"):
            return place(auto_class_of(config).from_config(config).requires_grad_(False), "lora")

    batch = MicroBatch(4, 120, 12, {"pixel_values": ((4, 3, 32, 32), torch.float32)})
    for checkpointing in (False, True):
        continued = activations(skeleton(), batch, bf16=False, checkpointing=checkpointing)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_MORE", 99)
            whole = activations(skeleton(), batch, bf16=False, checkpointing=checkpointing)
        assert continued.traced and whole.traced
        assert continued.forward == pytest.approx(whole.forward, rel=0.001)
        assert continued.peak == pytest.approx(whole.peak, rel=0.02)


def test_a_model_that_asks_for_values_gets_a_rough_count_that_says_so():
    model = skeleton_of(tiny_path(), "lora")
    forward = model.model.language_model.forward

    def asks(*args, **kwargs):
        if kwargs["inputs_embeds"].sum().item() > 0:
            raise AssertionError
        return forward(*args, **kwargs)

    model.model.language_model.forward = asks
    batch = MicroBatch(4, 120, 12, {"pixel_values": ((4, 3, 32, 32), torch.float32)})
    rough = activations(model, batch, bf16=False, checkpointing=False)
    exact = activations(skeleton_of(tiny_path(), "lora"), batch, bf16=False, checkpointing=False)
    assert not rough.traced and rough.why and exact.traced
    assert 0.5 * exact.peak < rough.peak < 3 * exact.peak


@pytest.mark.embedded
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype", "rows"), [("lora", "fp32", 2), ("lora", "fp32", 8), ("lora", "bf16", 8), ("full", "bf16", 4)]
)
def test_embedded_model_within_a_tenth(kind, dtype, rows, checkpointing):
    path = materialize(BaseConfig(family="embedded"))
    from mcit.plan.plan import make_plan, read_config

    plan = make_plan(read_config("demo", [])[0])
    real = list(DataFolder.open(plan.tasks[0].folder).rows("train"))[:rows]
    (_, peak), found = both(path, Encoder(load_processor(path)), real, kind, dtype=dtype, checkpointing=checkpointing)
    assert found.traced and found.peak == pytest.approx(peak, rel=0.10)
