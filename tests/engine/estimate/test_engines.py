import pytest

from mcit.engine.estimate.activations import Activations
from mcit.engine.estimate.engines import ENGINES, StageShape, ZeroSettings, all_engines, cheapest, engine_bytes
from mcit.engine.estimate.weights import Weight

ZERO = ZeroSettings(reduce_bucket=100, live=0)
SHAPE = StageShape(
    {
        "frozen": Weight((1000, 10), "bf16", trained=False, block="a"),
        "one": Weight((600, 10), "fp32", trained=True, block="b"),
        "two": Weight((200, 10), "fp32", trained=True, block="c"),
    },
    Activations(50_000, 100_000),
    reference=4_000,
    method_state=7,
    cuda=False,
)


def test_parts_of_each_engine_by_hand():
    """10,000 frozen bf16 numbers, 20,000 bytes; P = 8,000 trained, 32,000 bytes a copy; 4 processes, parts of 2,000.

    plain: weights 32,000, gradients 32,000, moments 64,000, DDP's buckets 32,000. zero1: master and moments of a part
    24,000, one bucket 400; gradients whole, and again what a rank keeps: the first tensor of 6,000 numbers is cut and kept
    whole by ranks 0 to 2, 24,000 bytes. zero2: the latter alone. zero3: frozen and trained parts too
    (5,000, 8,000), and the two largest of the layers (20,000, 24,000, 8,000) gathered: 44,400 with the bucket.
    Offload: master, moments, gradients and the way back of a part in host memory, 24,000 + 8,000 + 8,000 (none under
    zero3), with 7 of the method; a buffer of the largest tensor, 24,000, stays. Parameters: 13,000 more in host memory.
    """
    expected = {
        ("plain", "none"): (20_000, 32_000, 32_000, 64_000, 32_000, 4_000, 7),
        ("zero1", "none"): (20_000, 32_000, 56_000, 24_000, 400, 4_000, 7),
        ("zero2", "none"): (20_000, 32_000, 24_000, 24_000, 400, 4_000, 7),
        ("zero2", "optimizer"): (20_000, 32_000, 24_000, 0, 400, 4_000, 40_007),
        ("zero3", "none"): (5_000, 8_000, 8_000, 24_000, 44_400, 1_000, 7),
        ("zero3", "optimizer"): (5_000, 8_000, 24_000, 0, 44_400, 1_000, 32_007),
        ("zero3", "parameters"): (0, 0, 24_000, 0, 44_400, 1_000, 45_007),
    }
    for (kind, offload), parts in expected.items():
        row = engine_bytes(SHAPE, kind, offload, nproc=4, zero=ZERO)
        found = (row.frozen, row.trained, row.gradients, row.optimizer, row.buffers, row.reference, row.host)
        assert found == parts, (kind, offload)
        assert row.activations == 100_000 and row.device == sum(parts[:-1]) + 100_000


def test_one_process_reduces_nothing_and_illegal_pairs_are_refused():
    assert engine_bytes(SHAPE, "plain").buffers == 0
    for pair in (("plain", "optimizer"), ("zero1", "parameters"), ("zero2", "parameters")):
        with pytest.raises(ValueError):
            engine_bytes(SHAPE, *pair)
    pairs = [(r.kind, r.offload) for r in all_engines(SHAPE, zero=ZERO, quantised=True)]
    assert pairs == [p for p in ENGINES if p[0] != "zero3"]


def test_optimiser_temporaries_count_when_they_exceed_activations():
    """torch's AdamW on CUDA forms square roots of all second moments, 4 x 8,000 bytes; on a CPU two of the largest tensor."""
    from dataclasses import replace

    small = replace(SHAPE, activations=Activations(0, 10))
    assert engine_bytes(small, "plain").activations == 48_000
    assert engine_bytes(replace(small, cuda=True), "plain").activations == 32_000
    assert engine_bytes(replace(small, penalty=True), "plain").activations == 72_000
    assert engine_bytes(replace(small, optimizer="adamw8bit"), "plain").activations == 10


def test_paged_moments_are_host_memory_on_cuda():
    from dataclasses import replace

    row = engine_bytes(replace(SHAPE, optimizer="paged_adamw", cuda=True), "plain")
    assert (row.optimizer, row.host) == (0, 64_007)


def test_the_cheapest_engine_that_fits_comes_first():
    rows = all_engines(SHAPE, nproc=4, zero=ZERO)
    device = {row.name: row.device for row in rows}
    assert cheapest(rows, device=10**9).name == "plain"
    assert cheapest(rows, device=device["plain"] - 1).name == "zero1"
    assert cheapest(rows, device=device["zero1"] - 1).name == "zero2"
    assert cheapest(rows, device=device["zero2"] - 1).name == "zero2 + offload optimizer"
    once = 160_000  # rank 0: weights and moments, 96,000, and the file of the moments, 64,000
    assert {row.once for row in rows if row.kind != "plain"} == {once} and rows[0].once == 64_000
    assert cheapest(rows, device=device["zero2"] - 1, host=4 * 40_007 + once - 1, nproc=4).name == "zero3"
    assert cheapest(rows, device=device["zero3"] - 1, host=4 * 32_007 + once - 1, nproc=4) is None
    assert cheapest(rows, device=device["zero3 + offload parameters"]).name == "zero3 + offload parameters"
    assert cheapest(rows, device=1) is None


def test_zero3_holds_the_whole_model_when_it_is_loaded_and_handed_over():
    """Whole weights 20,000 + 32,000 beside what a rank of four holds, 5,000 + 8,000 + 24,000: 89,000, more than a small step.

    On CUDA the reserve of 1 GiB comes on top; copies for a checkpoint are made of plain's weights there too.
    """
    from dataclasses import replace

    row = engine_bytes(SHAPE, "zero3", nproc=4, zero=ZERO)
    assert row.whole == 89_000 and row.device == 190_400
    small = engine_bytes(replace(SHAPE, activations=Activations(0, 10)), "zero3", nproc=4, zero=ZERO)
    assert small.device == max(89_000, 190_400 - 100_000 + small.activations)
    assert engine_bytes(replace(SHAPE, cuda=True), "zero3", nproc=4, zero=ZERO).whole == 89_000 + (1 << 30)
    assert engine_bytes(replace(SHAPE, cuda=True), "plain", nproc=4).once == 160_000


def test_settings_are_those_of_the_engine():
    from mcit.engine.zerosettings import settings

    config = settings(2, "none", trained=SHAPE.trained)["zero_optimization"]
    assert ZeroSettings.of(config) == ZeroSettings(reduce_bucket=SHAPE.trained, overlap=False)
    assert engine_bytes(SHAPE, "zero2").buffers == 4 * SHAPE.trained
