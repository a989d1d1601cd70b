import pytest

from mcit.core.errors import StateError
from mcit.runs.layout import RunLayout


def test_paths_are_those_of_the_architecture(tmp_path):
    layout = RunLayout(tmp_path)
    found = {
        name: str(path.relative_to(tmp_path))
        for name, path in {
            "stage": layout.stage("02-textvqa"),
            "reference": layout.reference("02-textvqa"),
            "draft": layout.draft("02-textvqa"),
            "live": layout.live("02-textvqa", 400),
            "base": layout.evals(0),
            "first": layout.evals(1),
            "after": layout.evals(12),
            "extension": layout.extension,
            "combined": layout.combined("ties-01-02-abcdef"),
            "lock": layout.lock,
            "ledger": layout.ledger,
            "config": layout.config,
            "resolved": layout.resolved,
            "plan": layout.plan,
            "environment": layout.environment,
            "manifest": layout.manifest,
            "blobs": layout.blobs,
            "exports": layout.exports,
            "logs": layout.logs,
            "report": layout.report,
        }.items()
    }
    assert found == {
        "stage": "stages/02-textvqa",
        "reference": "stages/02-textvqa.json",
        "draft": "stages/.02-textvqa.draft",
        "live": "stages/.02-textvqa.draft/live/000400",
        "base": "evals/base",
        "first": "evals/after-01",
        "after": "evals/after-12",
        "extension": "extension",
        "combined": "evals/combined/ties-01-02-abcdef",
        "lock": "lock",
        "ledger": "ledger.jsonl",
        "config": "config.yaml",
        "resolved": "resolved.yaml",
        "plan": "plan.json",
        "environment": "environment.json",
        "manifest": "manifest.json",
        "blobs": "blobs",
        "exports": "exports",
        "logs": "logs",
        "report": "report",
    }


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "/etc"])
def test_no_stage_name_leaves_the_run(tmp_path, name):
    with pytest.raises(StateError, match="no name of a stage folder"):
        RunLayout(tmp_path).stage(name)
    with pytest.raises(StateError):
        RunLayout(tmp_path).draft(name)
