"""A pool of four adapters, exported: the shipped loader answers as mcit does, where mcit is not installed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mcit.core.errors import ConfigError, StateError
from mcit.core.files import read_json
from mcit.core.interfaces import Silent
from mcit.core.schema import BaseConfig
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.data.folder import DataFolder
from mcit.evals.generator import greedy
from mcit.evals.pooled import PooledAnswerer
from mcit.export import pool, portable
from mcit.export.export import export_stage
from mcit.export.source import Source
from mcit.export.verify import Difference, probe
from mcit.models.adapterfile import read_adapter, write_adapter
from mcit.models.load import load_processor
from mcit.routers.oracle import Oracle
from mcit.train.routing import pooled
from mcit.train.sequence import Session, run_sequence
from tests.fakes.bench import plan_of
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.pools import stored
from tests.fakes.trained_run import drawn
from tests.train.test_routing import POOL
from tests.train.test_sequence import opened

STAGES = [{"recipe": r} for r in ("tiny/letter", "tiny/yesno", "tiny/word", "tiny/word-retain")]
CHILD = """
import json, sys
sys.modules["mcit"] = None  # every import of it raises ModuleNotFoundError, as where it is not installed
sys.path.insert(0, sys.argv[1])
from loader import Pool
print(json.dumps(Pool(sys.argv[2]).answer(json.loads(sys.argv[3]), max_new_tokens=6)))
"""


def source_of(lineage):
    return Source(BaseConfig(family="tiny", dtype="fp32"), tiny_path(), lineage, torch.device("cpu"), "run")


def oracle(**tasks):
    router = Oracle(Oracle.Config())
    router.load_state_dict({"tasks": tasks})
    return router


def weight(pair):
    return pair.scale * pair.B_OR @ pair.A_RI


def test_what_is_written_is_the_last_stages_pool(tmp_path, monkeypatch):
    """Members as they were stored, the router as the last stage left it, its choice and the loader as source."""
    lineage = stored(tmp_path, [oracle(a="01-a"), oracle(a="01-a", b="02-b")])
    seen, compare = [], pool.difference
    monkeypatch.setattr(pool, "difference", lambda *both: seen.append(compare(*both)) or seen[-1])
    batch, out = probe(load_processor(tiny_path())), tmp_path / "out"
    record = pool.write(source_of(lineage), out, batch, router="oracle")
    assert len(seen) == 2 and max(d.absolute for d in seen) < 1e-4 < min(d.scale for d in seen)
    worst = max(seen, key=lambda d: d.absolute)
    assert record == {
        "relative_to": "base",
        "router": "oracle",
        "members": ["01-a", "02-b"],
        "difference": worst.absolute,
        "largest_logit": worst.scale,
        "difference_share": worst.share,
    }
    for delta in lineage.deltas:
        kept, written = delta.read().lora, read_adapter(out / delta.folder.name).lora
        assert kept.keys() == written.keys()
        assert all(torch.allclose(weight(kept[n]), weight(written[n])) for n in kept)
        assert read_json(out / delta.folder.name / "mcit.json")["stages"] == [delta.folder.name]
    state = {"tasks": {"a": "01-a", "b": "02-b"}}
    assert read_json(out / "pool.json") == {"members": ["01-a", "02-b"], "router": "oracle", "state": state}
    assert load_tensors(out / "router.safetensors").keys() == {"none"}
    assert load_tensors(out / "router.safetensors")["none"].tolist() == [0.0]
    space = {}
    exec((out / "route.py").read_text(), space)
    assert space["route"]([{"task": "a"}, {"task": "x"}], ["01-a", "02-b"], state, {}, None) == ["01-a", "02-b"]
    assert (out / "loader.py").read_bytes() == Path(portable.__file__).read_bytes()


def test_a_router_sees_rows_under_the_adapter_that_the_run_began_with(tmp_path):
    write_adapter(tmp_path / "began", drawn(tiny_model(), seed=9), base="b", base_sha256="0" * 64)
    base = BaseConfig(family="tiny", dtype="fp32", adapter=str(tmp_path / "began"))
    source = replace(source_of(stored(tmp_path, [oracle(a="01-a")])), base=base)
    pool.write(source, tmp_path / "out", probe(load_processor(tiny_path())), router="oracle")
    exported = portable.Pool(str(tiny_path()), tmp_path / "out")
    rows = [{"id": "1", "task": "a", "question": "What is shown?"}]
    with torch.no_grad():
        hidden = source.model(0).eval()(**exported.inputs(rows), output_hidden_states=True).hidden_states[-1][:, -1]
    torch.testing.assert_close(exported.states(rows, None), hidden, rtol=1e-4, atol=1e-4)


def test_tensors_of_the_router_come_along_and_the_furthest_member_is_told(tmp_path, monkeypatch):
    lineage = stored(tmp_path, [oracle(), oracle()])
    mean = torch.arange(3.0)
    save_tensors(lineage.deltas[-1].folder / "router" / "tensors.safetensors", {"mean|01-a": mean})
    told = iter([Difference(2e-7, 3.0, 1e-8), Difference(1e-7, 5.0, 1e-7)])
    monkeypatch.setattr(pool, "difference", lambda *both: next(told))
    monkeypatch.setattr(pool, "reloaded", lambda *args, **kwargs: None)
    record = pool.write(source_of(lineage), tmp_path / "out", probe(load_processor(tiny_path())), router="oracle")
    assert (record["difference"], record["largest_logit"], record["difference_share"]) == (2e-7, 3.0, 1e-8)
    found = load_tensors(tmp_path / "out" / "router.safetensors")
    assert found.keys() == {"mean|01-a"} and torch.equal(found["mean|01-a"], mean)


def test_a_member_that_reads_otherwise_is_refused(tmp_path, monkeypatch):
    lineage = stored(tmp_path, [oracle()])
    monkeypatch.setattr(pool, "difference", lambda *both: Difference(1.0, 1.0, 1.0))
    with pytest.raises(StateError, match="adapter 01-a"):
        pool.write(source_of(lineage), tmp_path / "out", probe(load_processor(tiny_path())), router="oracle")


@pytest.mark.parametrize(("carry", "router"), [("merge", "oracle"), ("pool", None), ("merge", None)])
def test_a_run_without_a_pool(carry, router, tmp_path):
    lineage = stored(tmp_path, [oracle()], carry=carry)
    with pytest.raises(StateError, match="keeps no pool"):
        pool.write(source_of(lineage), tmp_path / "out", None, router=router)
    assert not (tmp_path / "out").exists()


NEAREST = "mcit_sample.nearest:Nearest"
APART = [*STAGES[:2], {"recipe": "tiny/letter", "name": "again"}, {"recipe": "tiny/letter", "name": "third"}]
"""Stages whose second lines are no one group: options in another order, and a cue that only the second stage has."""


@pytest.mark.parametrize(
    ("router", "stages", "answering"),
    [
        ({"use": "oracle"}, STAGES, 3),
        ({"use": "self_refined"}, STAGES, 1),
        pytest.param({"use": "codebook", "instruction": "second_line"}, APART, 2, marks=pytest.mark.slow),
        pytest.param({"use": "analytic"}, STAGES, 2, marks=pytest.mark.slow),
        pytest.param({"use": NEAREST}, STAGES, 1, marks=pytest.mark.slow),
    ],
)
def test_the_loader_answers_as_mcit_does(router, stages, answering, tmp_path):
    """Every shipped router, and one from outside; at least `answering` of the four adapters answer some row."""
    plan = plan_of(defaults=POOL, stages=stages, router=router)
    run = opened(plan, tmp_path)
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
        done = export_stage(run, stage=4, kind="pool")
        assert not export_stage(run, stage=4, kind="pool").made
        with pytest.raises(ConfigError, match="keeps a pool"):
            export_stage(run, stage=4, kind="adapter")
    assert done.record["members"] == [s.folder for s in plan.stages] and done.record["difference"] < 1e-4
    rows = [row for task in plan.tasks[:3] for row in DataFolder.open(task.folder).rows("test")[:3]]
    session = Session(plan, run, Silent())
    model = session.model_after(4)
    with (
        pooled(plan, model, session.encoder, session.lineage(4)) as live,
        greedy(model, session.encoder, max_new_tokens=6) as generator,
    ):
        ours = PooledAnswerer(generator, live).answer(rows, device="cpu")
    given = [
        {"id": r.id, "task": r.task, "question": r.question, "images": [str(Path(r.root) / i) for i in r.images]}
        for r in rows
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", CHILD, str(done.folder), str(plan.model_path), json.dumps(given)]
    child = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == 0, child.stderr[-3000:]
    theirs = json.loads(child.stdout.splitlines()[-1])
    assert [(a["member"], a["text"]) for a in ours] == [tuple(pair) for pair in theirs]
    assert len({member for member, _ in theirs}) >= answering
