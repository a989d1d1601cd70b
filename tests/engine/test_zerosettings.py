from mcit.engine.zerosettings import settings


def test_no_clipping_and_no_precision_mode_of_deepspeeds_own():
    for stage, offload in ((1, "none"), (2, "optimizer"), (3, "parameters")):
        found = settings(stage, offload, trained=10)
        assert found["gradient_clipping"] == 0 and not found["bf16"]["enabled"] and not found["fp16"]["enabled"]
        zero = found["zero_optimization"]
        assert zero["stage"] == stage
        assert ("offload_optimizer" in zero, "offload_param" in zero) == (offload != "none", offload == "parameters")


def test_the_reduction_buffer_is_no_larger_than_what_trains():
    """DeepSpeed allocates it whole: 50 million numbers are 191 MiB, its default of 500 million would be 1.9 GiB."""
    sizes = [
        settings(2, "none", trained=n)["zero_optimization"]["reduce_bucket_size"] for n in (0, 7, 50_000_000, 10**10)
    ]
    assert sizes == [1, 7, 50_000_000, 50_000_000]
