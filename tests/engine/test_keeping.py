"""A stage that goes on with the optimiser of the one before (`optim.moments: keep`), where ZeRO holds it in host memory.

As a user does it: `mcit run` on two processes is told to stop in the middle of its second stage, and the same command ends
in the bytes of the run that never stopped; its weight changes are those of one process without ZeRO.
"""

import json

import pytest

from mcit.core.files import sha256_file
from tests.fakes.agreement_job import STEADY, changes_of_run
from tests.fakes.jobs import farthest, mcit

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """Folder of a run of two stages of four steps; `stop` tells it to stop after two steps of the second, and goes on."""
    home = tmp_path_factory.mktemp("keeping")

    def of(kind, offload, *, moments="keep", stop=False):
        term = {"name": "tests.fakes.failing:Failing", "how": "term", "rank": 0, "step": 1, "once": str(home / "told")}
        content = {
            "name": "keeping",
            "seed": 1,
            "base": {"family": "tiny", "dtype": "fp32"},
            "engine": {"kind": kind, "offload": offload, "micro_batch": 2, "workers": 0},
            "defaults": {
                "adapter": {"rank": 8, "alpha": 16, "also_train": ["projector"], "carry": "keep"},
                "optim": {"batch": 4, "lr": 2e-3, "schedule": "constant", "warmup": 0, "moments": moments, **STEADY},
                "max_steps": 4,
            },
            "stages": [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno", "methods": [term]}],
            "eval": {"tasks": "none"},
        }
        name = f"{kind}-{offload}-{moments}-{stop}"
        (home / f"{name}.json").write_text(json.dumps(content))
        (home / "told").unlink(missing_ok=True) if stop else (home / "told").touch()
        more = [] if kind == "plain" else ["--nproc", 2]
        for code in (75, 0) if stop else (0,):
            done = mcit("run", home / f"{name}.json", "--runs-dir", home / name, *more, cache=cache)
            assert done.code == code, done.err
        (root,) = (home / name).glob("keeping-*")
        return root

    return of


@pytest.fixture(scope="module")
def alone(trained):
    """Weight changes of one process, which goes on with the moments, and of one that does not."""
    return [changes_of_run(trained("plain", "none", moments=moments)) for moments in ("keep", "reset")]


def kept(root):
    """Checksums of weights and moments of both stages."""
    return {str(path.relative_to(root)): sha256_file(path) for path in sorted(root.glob("stages/*/**/*.safetensors"))}


@pytest.mark.parametrize(("kind", "offload"), [("zero2", "optimizer"), ("zero3", "parameters")])
def test_moments_in_host_memory_go_on_and_survive_a_stop(kind, offload, trained, alone):
    straight, stopped = (trained(kind, offload, stop=stop) for stop in (False, True))
    assert kept(stopped) == kept(straight)
    assert sum("optimizer" in name for name in kept(straight)) == 2
    with_moments, without = alone
    found = changes_of_run(straight)
    assert farthest(found, with_moments)[0] <= TOLERANCE, farthest(found, with_moments)
    assert farthest(found, without)[0] > 0.01
