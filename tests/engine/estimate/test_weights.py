import pytest
import torch

from mcit.engine.estimate.weights import Weight, frozen_bytes, held_gradients, moment_bytes, stored_bytes, trained_count


def test_bytes_of_each_storage_by_hand():
    """A 128 x 96 matrix has 12,288 numbers: fp32 49,152 bytes; bf16 24,576.

    nf4: 6,144 bytes of codes and 192 blocks of 64 with an fp32 scale (768) and 16 levels (64): 6,976. With double
    quantisation 192 one-byte scales, one fp32 scale of theirs (192 < 256), 256 levels (1,024) and an offset (4): 7,432.
    int8: a byte each and 128 row scales of 4 bytes: 12,800. Trained tensors are fp32 whatever the base is.
    """
    sizes = {s: stored_bytes(Weight((128, 96), s, trained=False)) for s in ("fp32", "bf16", "nf4", "int8")}
    assert sizes == {"fp32": 49152, "bf16": 24576, "nf4": 6144 + 192 + 4 + 64 + 1024 + 4, "int8": 12800}
    assert stored_bytes(Weight((128, 96), "nf4", trained=False), double_quant=False) == 6976
    assert stored_bytes(Weight((128, 96), "bf16", trained=True)) == 49152


def test_moments_by_hand():
    """AdamW 8 bytes a number. 8-bit: 2 bytes and two fp32 scales per block of 256; below 4,096 numbers 32 bits stay.

    10,000 numbers: 20,000 + 40 blocks x 8 = 20,320; 100 numbers: 800.
    """
    assert moment_bytes([10_000, 100], "adamw") == 80_800
    assert moment_bytes([10_000, 100], "adamw8bit") == 20_320 + 800
    assert moment_bytes([10_000, 100], "paged_adamw8bit") == 21_120


def test_frozen_and_trained_are_told_apart():
    weights = {"a": Weight((4, 4), "bf16", trained=False), "b": Weight((4, 4), "fp32", trained=True)}
    assert (frozen_bytes(weights), trained_count(weights)) == (32, 16)


@pytest.mark.parametrize("kind", ["nf4", "nf4-single", "int8"])
def test_quantised_bytes_equal_bitsandbytes(kind):
    """The library's own tensors on the CPU, scales and tables included, within 1 %."""
    from bitsandbytes import functional

    weight = torch.randn(256, 320)
    if kind == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        real = codes.nbytes + scales.nbytes
    else:
        codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=kind == "nf4")
        real = codes.nbytes + state.absmax.nbytes + state.code.nbytes
        if state.nested:
            real += state.offset.nbytes + state.state2.absmax.nbytes + state.state2.code.nbytes
    mine = stored_bytes(Weight((256, 320), kind.removesuffix("-single"), trained=False), double_quant=kind == "nf4")
    assert mine == pytest.approx(real, rel=0.01)


def test_gradients_of_cut_tensors_are_kept_whole():
    """Matrices of 60, 30 and 10 numbers on 2 ranks: slices of 50, and the cut goes through the first: 60 and 100.

    Vectors of 4 and 4 are a group of their own: 4 each. A projector's matrix of 20 is cut too: 20 each. At most 124.
    """
    weights = {
        "a": Weight((6, 10), "fp32", trained=True),
        "b": Weight((3, 10), "fp32", trained=True),
        "c": Weight((1, 10), "fp32", trained=True),
        "d": Weight((4,), "fp32", trained=True),
        "e": Weight((4,), "fp32", trained=True),
        "p": Weight((2, 10), "fp32", trained=True, projector=True),
        "f": Weight((99, 10), "bf16", trained=False),
    }
    assert held_gradients(weights, 2) == 100 + 4 + 20
    assert held_gradients(weights, 1) == 128
