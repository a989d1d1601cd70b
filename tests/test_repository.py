"""Files beside the code: they parse, and what they say of each other is so."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import mcit
from mcit.cli.main import VERBS

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


def test_the_citation_has_what_its_format_asks_for():
    """Keys of the Citation File Format 1.2.0, section "Valid keys": required ones, and the licence by its SPDX name."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert all(cited[key] for key in ("message", "title", "authors", "abstract", "keywords"))
    assert all(
        set(author) <= {"name", "family-names", "given-names", "orcid"} and author for author in cited["authors"]
    )
    assert cited["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_image_is_built_from_files_and_extras_that_there_are():
    """Extras that the Dockerfile and the dev container install exist, and so does each file they copy or name."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    build = (ROOT / "Dockerfile").read_text()
    after = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["postCreateCommand"]
    asked = [
        name
        for group in re.findall(r"\[([\w,]+)\]", build.partition("ENTRYPOINT")[0] + after)
        for name in group.split(",")
    ]
    assert {"tensorboard", "routers", "test"} == set(asked) <= set(extras)
    assert re.findall(r"^COPY (\S+)", build, re.MULTILINE) == ["."] and "-c constraints.txt" in after
    (shown,) = re.findall(r"mcit run (configs/\S+)", build)
    assert (ROOT / shown).is_file() and (ROOT / "constraints.txt").is_file()
    assert (
        "-v '^torch==' /opt/src/constraints.txt" in build and "-c /opt/constraints.txt" in build
    )  # as its comment says
    assert json.loads(re.search(r"^CMD (.+)$", build, re.MULTILINE)[1])[0] in VERBS


def test_paths_in_workflow_hooks_and_issue_forms_exist():
    named = [
        *(step["run"] for step in _steps() if "run" in step),
        *(word for hook in _hooks() for word in hook["entry"].split() if "/" in word),
    ]
    assert ".ci/run" in named and "tests/test_docs.py" in named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def _steps():
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["checks"]["steps"]


def _hooks():
    return yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def test_pre_commit_needs_no_network():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["id"] for hook in repos[0]["hooks"]} == {"ruff", "house"}
    assert "\nmypy\n" in (ROOT / ".ci/run").read_text()  # minutes without its cache, so not before each commit
    assert all(hook["language"] == "system" for hook in repos[0]["hooks"])


def test_continuous_integration_runs_the_checks_and_keeps_screenshots():
    steps = _steps()
    run = next(step for step in steps if "run" in step)
    upload = next(step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert run["run"] == ".ci/run" and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert (
        upload["with"]["path"] == run["env"]["MCIT_SCREENSHOTS"]
        and "MCIT_SCREENSHOTS" in (ROOT / ".ci/run").read_text()
    )
