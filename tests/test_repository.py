"""Files beside the code: they parse, and what they say of each other is so."""

import json
import os
from pathlib import Path

import pytest
import yaml

import mcit

ROOT = Path(__file__).parent.parent
WRITTEN = [
    ".pre-commit-config.yaml",
    "CITATION.cff",
    *(str(p.relative_to(ROOT)) for p in ROOT.glob(".github/**/*.yml")),
]


@pytest.mark.parametrize("name", WRITTEN)
def test_yaml_files_parse(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_files_that_a_repository_needs_are_there():
    for name in ("LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "Dockerfile", ".github/ISSUE_TEMPLATE/bug.yml"):
        assert (ROOT / name).stat().st_size > 200, name
    assert "postCreateCommand" in json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mcit.__version__


def test_pre_commit_needs_no_network():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["id"] for hook in repos[0]["hooks"]} >= {"ruff", "mypy"}
    assert all(hook["language"] == "system" for hook in repos[0]["hooks"])


def test_continuous_integration_runs_the_checks_and_keeps_screenshots():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["checks"]["steps"]
    run = next(step for step in steps if "run" in step)
    upload = next(step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert run["run"] == ".ci/run" and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert (
        upload["with"]["path"] == run["env"]["MCIT_SCREENSHOTS"]
        and "MCIT_SCREENSHOTS" in (ROOT / ".ci/run").read_text()
    )
