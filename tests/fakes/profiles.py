"""Profiles as commands leave them."""


def start(name="01-a", *, tokens=1600, counted=100, peak=3 << 20, **changes):
    """One stage: 40 s in steps, of which 4 were counted; 2e9 FLOPs in `counted` tokens on a machine of 1e9 a second."""
    stage = {
        "name": name, "seconds": {"start-up": 2.0, "data": 10.0, "backward": 30.0, "checkpoint": 8.0}, "steps": 16,
        "tokens": tokens, "counted_steps": 1, "counted_tokens": counted, "counted_seconds": 4.0 if counted else 0.0,
        "flops": 2_000_000_000 if counted else 0, "peak_bytes": peak,
    }  # fmt: skip
    return {
        "began": "2026-01-01T00:00:00+00:00", "device": "cpu", "dtype": "fp32", "threads": 2, "processes": 1,
        "matmul_flops": 1_000_000_000, "stages": [stage], **changes,
    }  # fmt: skip
