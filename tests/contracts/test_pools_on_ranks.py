"""A pool with MOS, its router and a probe on two real ranks: what one process trains, measures, knows and answers."""

import json

import pytest
import torch

from mcit.core.tensorfile import load_tensors
from tests.fakes.agreement_job import changes_of_run
from tests.fakes.jobs import farthest, mcit
from tests.fakes.run_dir import json_lines

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
SETTINGS = {
    "defaults.max_steps": 3,
    "defaults.adapter.dropout": 0,
    "defaults.optim.eps": 1e-3,
    "eval.rows": 4,
    "engine.workers": 0,
    "probes": "[{use: seen, every: 2, count: 4, share: null}]",
    "router.samples": 16,
}


def run(home, cache, *more):
    given = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    done = mcit("run", "tiny-pool", "--runs-dir", home, *given, *more, cache=cache)
    assert done.code == 0, done.err[-3000:]
    (root,) = (p for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    return run(tmp_path_factory.mktemp("alone"), cache)


@pytest.mark.parametrize("kind", ["plain", "zero2", "zero3"])
def test_two_ranks_do_as_one(kind, alone, tmp_path, cache):
    root = run(tmp_path, cache, "--nproc", "2", "--set", f"engine.kind={kind}")
    distance, unit = farthest(changes_of_run(root), changes_of_run(alone))
    assert distance <= 1e-5, unit
    for stage in ("01-letter", "02-yesno", "03-word"):
        state, tensors = (root / "stages" / stage / "router" / n for n in ("state.json", "tensors.safetensors"))
        assert state.read_bytes() == (alone / "stages" / stage / "router" / "state.json").read_bytes()
        mine, theirs = load_tensors(tensors), load_tensors(alone / "stages" / stage / "router" / "tensors.safetensors")
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.allclose(mine[name], value, rtol=1e-3, atol=1e-4), (stage, name)
        probes = [json_lines(r / "stages" / stage / "probes.jsonl") for r in (root, alone)]
        assert flat(probes[0]) == pytest.approx(flat(probes[1]), rel=1e-4) and flat(probes[1])
    answers = [
        {
            p.relative_to(r): [(a["id"], a["member"], a["text"]) for a in json_lines(p)]
            for p in r.rglob("predictions.jsonl")
        }
        for r in (root, alone)
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 6


def flat(lines):
    """Every measured number by place."""
    return {
        f"{line['step']} {json.dumps(key)} {name}": number
        for line in lines
        for key, values in line["values"].items()
        for name, number in values.items()
    }
