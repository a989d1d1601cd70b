"""Every family through the commands: two stages trained and scored, exports that load where mcit is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mcit.cli.main import main
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.export.verify import probe
from mcit.models.adapterfile import read_adapter
from mcit.models.load import load_processor
from tests.fakes.families import table
from tests.fakes.families.make import FAMILIES, write
from tests.fakes.families.task import config, two_tasks

pytestmark = pytest.mark.slow
NAMES = list(FAMILIES)
PLAIN = Path(__file__).parents[1] / "fakes" / "families" / "plain_load.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run directory of a family, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            home = tmp_path_factory.mktemp(name)
            folder = write(name, home / "model")
            scored = {"tasks": "seen", "rows": 3, "batch": 3, "max_new_tokens": 4}
            text = yaml.safe_dump(config(str(folder), *two_tasks(home, name), eval=scored))
            (home / "run.yaml").write_text(text)
            assert main(["run", str(home / "run.yaml"), "--runs-dir", str(home / "runs")]) == 0
            (made[name],) = (home / "runs").glob("family-*")
        return made[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_two_stages_train_and_are_scored(trained, name):
    """Every pair of the adapter and every tensor of the projector moved in both stages; three scores."""
    root = trained(name)
    for stage in ("01-single", "02-mixed"):
        file = read_adapter(root / "stages" / stage / "adapter")
        steps = [json.loads(line) for line in (root / "stages" / stage / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) == 2 and all(0 < step["loss"] < 20 for step in steps)
        assert file.lora and all(pair.B_OR.abs().max() > 0 for pair in file.lora.values())
    matrix = json.loads((root / "report" / "report.json").read_text())["matrix"]
    assert sum(score is not None for line in matrix for score in line) == 3
    table.cell(name, "plain", "yes")


def test_exports_load_in_plain_transformers_and_peft(trained, tmp_path):
    """Merged and adapter of every family, loaded by one process that cannot import mcit; logits as the run's own export
    check found them."""
    wanted = {}
    for name in NAMES:
        root, home = trained(name), tmp_path / name
        home.mkdir()
        for kind in ("merged", "adapter"):
            assert main(["export", str(root), "--stage", "2", "--as", kind, "--out", str(home / kind)]) == 0
        batch = probe(load_processor(json.loads((root / "plan.json").read_text())["base"]))
        ids = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_BT}
        save_tensors(home / "batch.safetensors", {**ids, **batch.pixels})
        wanted[name] = json.loads((root / "plan.json").read_text())["base"]
    run = subprocess.run(
        [sys.executable, "-I", str(PLAIN), json.dumps(wanted), str(tmp_path)],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for name in NAMES:
        out = load_tensors(tmp_path / name / "logits.safetensors")
        merged, adapter = (out[kind][out["real"].bool()] for kind in ("merged", "adapter"))
        assert (merged - adapter).abs().max() < 1e-4 * max(1.0, float(merged.abs().max())), name
        assert (merged - out["base"][out["real"].bool()]).abs().max() > 1e-3, name
        table.cell(name, "exports", "yes")
