"""Jobs of several processes that tests start and read the results of."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from mcit.core.tensorfile import load_tensors


def environment(cache):
    """Of a job: one thread, the test session's cache, no settings of accelerate."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")},
        "MCIT_CACHE": str(cache),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent / "outside")]),
    }


def start(module, *arguments, processes, cache):
    """Run ``python -m module`` on so many processes to its end; what it said and its exit code."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", module, *map(str, arguments)]
    return subprocess.run(command, env=environment(cache), capture_output=True, text=True)


def train(kind, offload, folder, plans, *, processes, cache):
    """Train named plans by `tests.fakes.agreement_job`: {name: [(weight changes, metrics of every step) of each rank]}."""
    given = [f"{name}={json.dumps(settings)}" for name, settings in plans.items()]
    run = start("tests.fakes.agreement_job", kind, offload, folder, *given, processes=processes, cache=cache)
    assert run.returncode == 0, run.stderr[-4000:]
    out = {}
    for name in plans:
        homes = [Path(folder) / name / f"rank-{rank}" for rank in range(processes)]
        out[name] = [
            (load_tensors(h / "changes.safetensors"), json.loads((h / "steps.json").read_text())) for h in homes
        ]
    return out


def farthest(found, reference):
    """Largest distance of a unit's weight change, relative to the change (Frobenius), and the unit."""
    assert found.keys() == reference.keys()
    return max((float((found[n] - reference[n]).norm() / max(float(reference[n].norm()), 1e-12)), n) for n in reference)


def mcit(*arguments, cache, limit=300, **env):
    """The command as a user starts it: exit code, what it said, seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "mcit", *map(str, arguments)]
    done = subprocess.run(command, env=environment(cache) | env, capture_output=True, text=True, timeout=limit)
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, seconds=time.monotonic() - started)
