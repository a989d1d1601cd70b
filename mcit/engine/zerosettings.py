"""What DeepSpeed is told; an estimate reads it without loading an engine."""

from __future__ import annotations

from typing import Any, Literal

Offload = Literal["none", "optimizer", "parameters"]
REDUCE_BUCKET = 50_000_000
"""Most numbers that are reduced at a time; DeepSpeed's default of 500 million is a buffer of 1.9 GiB in fp32."""


def settings(stage: int, offload: Offload, *, trained: int) -> dict[str, Any]:
    """The DeepSpeed config: no clipping, no precision mode, one micro-batch per boundary; all of that is ours.

    `trained` is how many numbers train: a reduction buffer, which DeepSpeed allocates whole, is never larger.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": max(1, min(REDUCE_BUCKET, trained)),
    }
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0}
        if offload == "parameters":
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
    }
