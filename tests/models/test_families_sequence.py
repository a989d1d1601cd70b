"""Three families over four tasks in CoIN's layout, by the commands: trained, scored after every stage, exported."""

from __future__ import annotations

import json

import pytest
import yaml

from mcit.cli.main import main
from tests.fakes.benchmarks import coin as coin_layout
from tests.fakes.families.make import write
from tests.fakes.families.task import config

pytestmark = pytest.mark.slow
TASKS = ["scienceqa", "textvqa", "gqa", "grounding"]
ROWS = 8


@pytest.fixture(scope="module")
def coin(tmp_path_factory):
    """A folder for MCIT_DATA with the files of the four tasks."""
    home = tmp_path_factory.mktemp("data")
    coin_layout(home / "coin", ["ScienceQA", "TextVQA", "GQA", "Grounding"], train=ROWS)
    return home


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "internvl"])
def test_four_benchmark_tasks_end_to_end(coin, name, tmp_path, monkeypatch):
    """Replay of earlier tasks; the matrix is a lower triangle of ten scores, each with its answers; the export agrees."""
    monkeypatch.setenv("MCIT_DATA", str(coin))
    folder = write(name, tmp_path / "model")
    scored = {"tasks": "seen", "rows": 3, "batch": 3, "max_new_tokens": 4}
    plan = config(str(folder), *(f"coin/{task}" for task in TASKS), eval=scored)
    plan["defaults"]["methods"] = [{"name": "replay", "per_step": 2}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plan))
    assert main(["plan", str(tmp_path / "run.yaml")]) == 0
    assert main(["run", str(tmp_path / "run.yaml"), "--runs-dir", str(tmp_path / "runs")]) == 0
    (root,) = (tmp_path / "runs").glob("family-*")
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["tasks"] == TASKS
    assert [sum(score is not None for score in line) for line in report["matrix"]] == [1, 2, 3, 4]
    for k, after in enumerate(sorted((root / "eval").glob("after-*")), start=1):
        answered = sorted(path.parent.name for path in after.rglob("predictions.jsonl"))
        assert answered == sorted(TASKS[:k])
    for line in (root / "stages" / "02-textvqa" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["loss/replay"] > 0
    assert main(["export", str(root), "--stage", "4", "--as", "merged", "--json"]) == 0
    record = json.loads((root / "exports" / "04-grounding-merged" / "export.json").read_text())
    assert record["difference"] <= 1e-5 * max(1.0, record["largest_logit"])
