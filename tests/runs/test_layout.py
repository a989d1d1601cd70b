import pytest

from mcit.core.errors import StateError
from mcit.runs.layout import RunLayout


def test_paths_are_those_of_the_architecture(tmp_path):
    layout = RunLayout(tmp_path)
    found = {
        name: str(path.relative_to(tmp_path))
        for name, path in {
            "stage": layout.stage("02-textvqa"),
            "draft": layout.draft("02-textvqa"),
            "live": layout.live("02-textvqa", 400),
            "base": layout.evals(0),
            "after": layout.evals(12),
            "lock": layout.lock,
            "ledger": layout.ledger,
            "resolved": layout.resolved,
        }.items()
    }
    assert found == {
        "stage": "stages/02-textvqa",
        "draft": "stages/.02-textvqa.draft",
        "live": "stages/.02-textvqa.draft/live/000400",
        "base": "evals/base",
        "after": "evals/after-12",
        "lock": "lock",
        "ledger": "ledger.jsonl",
        "resolved": "resolved.yaml",
    }


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "/etc"])
def test_no_stage_name_leaves_the_run(tmp_path, name):
    with pytest.raises(StateError, match="no name of a stage folder"):
        RunLayout(tmp_path).stage(name)
    with pytest.raises(StateError):
        RunLayout(tmp_path).draft(name)
