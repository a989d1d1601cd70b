"""Extended and branched runs of the tiny model: every byte of stages, method state and answers as in the straight run."""

import functools
import json
import shutil

import pytest

from mcit.cli.main import main
from mcit.core.errors import Interrupted, StateError
from mcit.core.files import read_json
from mcit.core.interfaces import Silent
from mcit.export.export import export_stage
from mcit.plan.record import plan_json, resolved
from mcit.report.tables import full_report
from mcit.runs.extend import open_branch, open_or_extend
from mcit.runs.rollback import rollback
from mcit.train.sequence import run_sequence
from tests.fakes.bench import plan_of

STAGES = [{"recipe": f"tiny/{name}"} for name in ("letter", "yesno", "word")]
MERGE = {"max_steps": 2, "methods": [{"name": "reglora"}, {"name": "replay"}]}
KEEP = {
    "max_steps": 2,
    "adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "keep"},
    "methods": [{"name": "replay"}],
}


def plan(stages, defaults=MERGE, **changes):
    return plan_of(
        stages=stages,
        defaults=defaults,
        eval={"tasks": "seen", "base": True, "rows": 4, "batch": 4, "max_new_tokens": 4},
        checkpoint={"every": 1},
        **changes,
    )


def run_of(made, folder, by=open_or_extend, *, stop=lambda: False, **options):
    """Open and train to the end, or to where `stop` says."""
    start = {
        "config_text": "",
        "resolved": resolved(made.config),
        "plan_json": plan_json(made),
        "environment": {"versions": {}},
    }
    run = by(made, runs_dir=folder, **start, **options)
    with run.locked():
        run_sequence(made, run, reporter=Silent(), stop=stop)
    return run


def kept(run):
    """Bytes of deltas, lineage, method state and answers, wherever they are."""
    out = {}
    for folder in run.committed():
        home = run.stage(folder)
        for path in sorted(p for p in home.rglob("*") if p.is_file()):
            if path.name not in {"progress.json", "metrics.jsonl", "manifest.json"}:  # wall times
                out[f"{folder}/{path.relative_to(home)}"] = path.read_bytes()
    evals = run.layout.root / "evals"
    out.update({str(p.relative_to(evals)): p.read_bytes() for p in sorted(evals.rglob("*")) if p.is_file()})
    return out


@pytest.fixture(scope="module")
def _cache(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory, _cache):
    return run_of(plan(STAGES), tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def extended(tmp_path_factory, _cache):
    """Two stages to the end, then the third, stopped in its middle and continued."""
    folder = tmp_path_factory.mktemp("extended")
    first = run_of(plan(STAGES[:2]), folder)
    steps = iter([False, True])
    with pytest.raises(Interrupted):
        run_of(plan(STAGES), folder, stop=functools.partial(next, steps))
    assert first.live_step("03-word") in (1, 2)
    return run_of(plan(STAGES), folder)


@pytest.fixture(scope="module")
def branched(straight, _cache):
    """Another order and another method after stage 1, beside the straight run."""
    return run_of(plan(OTHER), straight.layout.root.parent, open_branch, parent=straight)


OTHER = [STAGES[0], {**STAGES[2], "methods": [{"name": "reglora", "weight": 10.0}]}, STAGES[1]]


def test_an_extended_run_ends_in_the_bytes_of_the_straight_run(straight, extended):
    assert kept(extended) == kept(straight) and len(kept(straight)) > 20
    found, wanted = full_report(extended.layout.root), full_report(straight.layout.root)
    assert {k: v for k, v in found.items() if k not in ("name", "costs")} == {
        k: v for k, v in wanted.items() if k not in ("name", "costs")
    }
    assert [line["stage"] for line in found["costs"] if line["committed"]] == extended.stage_folders()


def test_a_branched_run_ends_in_the_bytes_of_the_straight_run(branched, tmp_path):
    direct = run_of(plan(OTHER), tmp_path)
    assert kept(branched) == kept(direct)
    assert branched.layout.reference("01-letter").is_file() and not branched.layout.stage("01-letter").exists()
    assert all(line["committed"] and line["tokens"] for line in full_report(branched.layout.root)["costs"])


def test_a_kept_adapter_goes_on_from_a_shared_stage(tmp_path):
    parent = run_of(plan(STAGES[:2], KEEP), tmp_path)
    order = [STAGES[0], STAGES[2]]
    assert kept(run_of(plan(order, KEEP), tmp_path, open_branch, parent=parent, stages=1)) == kept(
        run_of(plan(order, KEEP), tmp_path / "direct")
    )


def test_export_of_shared_stages_equals_that_of_the_straight_run(straight, branched, tmp_path):
    one = export_stage(branched, stage=1, kind="adapter", out=tmp_path / "branched")
    two = export_stage(straight, stage=1, kind="adapter", out=tmp_path / "straight")
    name = "adapter_model.safetensors"
    assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert one.record["stages"] == ["01-letter"] and export_stage(branched, stage=3, kind="adapter").made


def test_commands_on_such_runs(extended, branched, straight, capsys):
    for run in (extended, branched):
        root = str(run.layout.root)
        capsys.readouterr()
        assert main(["status", root, "--json"]) == 0
        state = json.loads(capsys.readouterr().out)
        assert state["finished"] and all(stage["committed"] for stage in state["stages"])
        shared = [stage["shared_from"] for stage in state["stages"]]
        assert bool(shared[0]) == (run is branched) and shared[1:] == [None, None]
        assert main(["report", root]) == 0 and main(["eval", root, "--rescore"]) == 0
    capsys.readouterr()
    assert main(["status", str(branched.layout.root)]) == 0
    said = " ".join(capsys.readouterr().out.split())  # lines are broken at the width of the terminal
    assert f"01-letter: committed, shared from {straight.layout.root}" in said
    assert main(["rollback", str(straight.layout.root), "--to-stage", "0", "--yes"]) == 5
    assert "01-letter is shared with" in capsys.readouterr().err


def test_scores_of_other_settings_are_made_in_the_branch_alone(straight, tmp_path):
    before = kept(straight)
    changed = plan_of(
        stages=STAGES[:1], defaults=MERGE, checkpoint={"every": 1}, eval={"rows": 2, "batch": 4, "max_new_tokens": 4}
    )
    run = run_of(changed, tmp_path, open_branch, parent=straight)
    assert read_json(run.layout.evals(1) / "letter" / "score.json")["n"] == 2
    assert read_json(straight.layout.evals(1) / "letter" / "score.json")["n"] == 4 and kept(straight) == before


def test_without_the_parent_every_command_says_what_is_gone(straight, branched, tmp_path, capsys):
    for run in (straight, branched):
        shutil.copytree(run.layout.root, tmp_path / run.layout.root.name)
    child = tmp_path / branched.layout.root.name
    shutil.rmtree(tmp_path / straight.layout.root.name)
    for command in (["status"], ["report"], ["resume"], ["export", "--stage", "3"], ["eval"]):
        assert main([command[0], str(child), *command[1:]]) == 5, command
        err = capsys.readouterr().err
        assert "01-letter" in err and "is gone" in err and "trained again in this run" in err
    with pytest.raises(StateError, match="is gone"):
        run_of(plan(OTHER), tmp_path)


def test_a_combination_is_scored_beside_the_matrix(extended, capsys):
    run = extended
    root = str(run.layout.root)
    assert main(["rollback", root, "--to-stage", "3", "--yes"]) == 0  # only exports of nothing known would go
    before, matrix = kept(run), full_report(run.layout.root)["matrix"]
    assert main(["eval", root, "--combined", "ties", "--stages", "1,3", "--density", "0.6"]) == 0
    (entry,) = full_report(run.layout.root)["combined"]
    assert entry["name"].startswith("ties-01-03-") and None not in entry["scores"] and entry["density"] == 0.6
    assert full_report(run.layout.root)["matrix"] == matrix and before.items() <= kept(run).items()
    text = (run.layout.report / "report.md").read_text()
    assert "## Combined adapters" in text and "1 (1), 3 (1) | 0.6" in text
    times = {p: p.stat().st_mtime_ns for p in run.layout.combinations.rglob("predictions.jsonl")}
    assert main(["eval", root, "--combined", "ties", "--stages", "1,3", "--density", "0.6"]) == 0
    assert main(["eval", root, "--rescore"]) == 0
    for kind, more in (("linear", ()), ("dare", ("--density", "0.6"))):
        assert main(["eval", root, "--combined", kind, "--stages", "1,3", *more]) == 0
    named = {one["name"].partition("-")[0]: one["scores"] for one in full_report(run.layout.root)["combined"]}
    assert set(named) == {"ties", "linear", "dare"} and all(None not in scores for scores in named.values())
    assert len(times) == 3 and all(p.stat().st_mtime_ns == t for p, t in times.items())
    capsys.readouterr()
    assert main(["eval", root, "--combined", "ties", "--after", "1"]) == 2
    assert "goes with none of --after" in capsys.readouterr().err
    with run.locked():
        assert f"evals/combined/{entry['name']}" in rollback(run, 2)
