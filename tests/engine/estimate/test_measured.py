"""Estimates of weights, gradients and optimiser against the bytes of actual tensors, within 5 %."""

import json
import os
import subprocess
import sys

import pytest
import torch

from mcit.engine.estimate.measured import quantised
from tests.fakes.measure_job import compare
from tests.fakes.models import tiny_path

PARTS = ("frozen", "trained", "gradients", "optimizer")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("what", ["lora", "lora alone", "full"])
def test_plain_engine(what, dtype, optimizer):
    found = compare("plain", "none", dtype, what, optimizer)
    for part in PARTS:
        assert found["estimated"][part] == pytest.approx(found["measured"][part], rel=0.05), part


def test_scales_and_tables_of_a_quantised_parameter_are_found():
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(torch.randn(64, 64), quant_type="nf4", compress_statistics=True)
    codes.quant_state = state
    sizes = sorted(t.nbytes for t in quantised(codes))
    assert sizes == sorted(
        t.nbytes for t in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    )


@pytest.mark.distributed
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "offload"), [("zero1", "none"), ("zero2", "none"), ("zero3", "none")])
def test_zero_on_two_processes(kind, offload, tmp_path, cache, monkeypatch):
    """The rank that holds most. Gradients under ZeRO-1 are whole only between micro-batches; then a part is left."""
    tiny_path()
    env = {**os.environ, "MCIT_CACHE": str(cache), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "tests.fakes.measure_job", kind, offload, str(tmp_path)]
    done = subprocess.run([sys.executable, *command, *job], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"bytes-{rank}.json").read_text()) for rank in range(2)]
    for case, found in ranks[0].items():
        expected = dict(found["estimated"])
        if kind == "zero1":
            expected["gradients"] -= expected["trained"]
        for part in PARTS:
            most = max(rank[case]["measured"][part] for rank in ranks)
            assert expected[part] == pytest.approx(most, rel=0.05), (case, part)
