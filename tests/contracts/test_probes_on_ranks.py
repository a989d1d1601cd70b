"""Every probe, a slice and a gate that fails on two real ranks: what one process measures, and the same decision."""

import pytest
import yaml

from mcit.core.files import read_json
from mcit.runs.gates import read_gate
from mcit.runs.run import Run
from tests.fakes.agreement_job import changes
from tests.fakes.jobs import farthest, mcit
from tests.fakes.run_dir import json_lines

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
FIRST, SECOND = "01-letter", "02-yesno"
GATE = """thresholds:
  - {metric: success, at_least: 1.0, unit: share}
  - {metric: locality, at_least: 0.0, unit: share}
  - {metric: drawdown, at_most: 100, unit: points}
"""


def config(folder):
    (folder / "gate.yaml").write_text(GATE)
    content = {
        "name": "probed",
        "seed": 1,
        "base": {"family": "tiny", "dtype": "fp32"},
        "engine": {"micro_batch": 4, "workers": 0},
        "defaults": {
            "adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"]},
            "optim": {"batch": 8, "lr": 1e-2, "eps": 1e-3},
            "max_steps": 2,
            "epochs": 2,
            "methods": [{"use": "canary", "rows": 6, "exposures": [1, 2]}, {"use": "lwf"}],
        },
        "stages": [
            {"recipe": "tiny/letter"},
            {"recipe": "tiny/yesno", "slices": {"neighbourhood": ["tiny/word"]}, "gate": str(folder / "gate.yaml")},
        ],
        "probes": [
            {"use": "stability", "every": 1, "rows": 6, "answers": 2, "norms": 2, "share": None},
            {"use": "generation", "every": 2, "rows": 4, "share": None},
            {"use": "canary", "share": None},
        ],
        "eval": {"tasks": "seen", "rows": 4, "base": False},
    }
    path = folder / "probed.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def set_aside(home, cache, *more):
    """A run whose second stage fails its gate."""
    done = mcit("run", config(home), "--runs-dir", home / "runs", *more, cache=cache)
    assert done.code == 6 and done.err.count("is set aside") == 1, done.err[-3000:]
    (root,) = (home / "runs").glob("probed-*")
    return Run(root)


def stages(run):
    return [run.layout.stage(FIRST), run.layout.aside(SECOND) / SECOND]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    return set_aside(tmp_path_factory.mktemp("alone"), cache)


@pytest.mark.parametrize("kind", ["plain", "zero2", "zero3"])
def test_two_ranks_measure_and_decide_as_one(kind, alone, tmp_path, cache):
    run = set_aside(tmp_path, cache, "--nproc", "2", "--set", f"engine.kind={kind}")
    base = read_json(run.layout.root / "plan.json")["base"]
    distance, unit = farthest(*(changes(base, stages(one)) for one in (run, alone)))
    assert distance <= 1e-5, unit
    for mine, theirs in zip(stages(run), stages(alone), strict=True):
        found, expected = (flat(json_lines(stage / "probes.jsonl")) for stage in (mine, theirs))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert {key.split()[1] for key in expected} == {"stability", "generation", "canary"}
    assert expected["2 stability norms lwf"] > 0
    assert run.committed() == alone.committed() == [FIRST]
    records = [read_gate(one.layout, SECOND) for one in (run, alone)]
    assert records[0]["verdict"] == "fail" and records[0]["decision"] == "aside"
    assert records[0]["results"] == records[1]["results"]
    assert [r["verdict"] for r in records[0]["results"]] == ["fail", "pass", "pass"]


def flat(lines):
    """Every measured number by step, probe and place."""

    def numbers(value, place):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if isinstance(value, (int, float)):
            yield place, value
        for key, inner in items:
            yield from numbers(inner, f"{place} {key}")

    return {
        place: value for line in lines for place, value in numbers(line["values"], f"{line['step']} {line['probe']}")
    }
