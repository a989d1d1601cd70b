"""Data of a request that were deleted after its stage: what goes on without them, and what says so."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from mcit.cli.audit import data_part
from mcit.cli.main import main
from mcit.core.errors import StateError
from mcit.core.schema import KitConfig
from mcit.plan.forgetting import forget_due, forget_problems, kit_problems
from mcit.plan.gone import forget_data, gone, recorded, without_data
from mcit.train.attack import attack_problems
from mcit.train.kit import kit_due
from tests.fakes.bench import plan_of
from tests.fakes.recipes import recipe_file, rows

GS = [{"use": "gs_lora", "per_step": 4}]
STAGES = [
    {"recipe": "tiny/letter"},
    {"name": "forget", "recipe": "tiny/word-retain", "forget": "tiny/word-forget", "methods": GS},
    {"recipe": "tiny/yesno"},
]


@pytest.fixture
def plan():
    """A plan whose second stage's request has no data any more."""
    made = plan_of(stages=STAGES)
    kept = {"name": made.config.name, "forget_data": forget_data(made)}
    run = SimpleNamespace(plan=lambda: kept, committed=lambda: ["01-letter", "02-forget"])
    known = recorded([run], name=made.config.name)["tiny/word-forget"]
    assert (
        known.stages == 2
        and replace(known.task, gone=False, folder=made.forget_tasks[0].folder) == made.forget_tasks[0]
    )
    stage = replace(made.stages[1], forget=(known.task,))
    return replace(made, stages=(made.stages[0], stage, made.stages[2]), forget_tasks=(known.task,))


def test_of_another_name_or_a_damaged_run_nothing_is_known():
    def damaged():
        raise StateError("x", where="y", fix="z")

    run = SimpleNamespace(plan=lambda: {"name": "a", "forget_data": {"r": {}}}, committed=lambda: [])
    assert recorded([SimpleNamespace(plan=damaged), run], name="b") == {}


def test_what_is_left_out_and_said(plan):
    assert gone(plan.stages[1]) == ["tiny/word-forget"] and not gone(plan.stages[0])
    assert [[t.name for t in forget_due(plan, k)] for k in range(4)] == [[], ["word-others"], [], []]
    assert all(kit_due(plan, k, KitConfig()) == () for k in range(4))
    (note,) = forget_problems(plan)
    assert note.level == "note" and "no score, kit or attack" in note.what and "tiny/word-forget" in note.what
    (note,) = kit_problems(plan, KitConfig())
    assert note.level == "note" and "nothing to measure" in note.what
    with pytest.raises(Exception, match="were deleted"):
        attack_problems(plan, plan.stages[1])


def test_a_stage_that_is_still_to_be_trained_needs_its_data(plan):
    (line,) = without_data(plan.stages, SimpleNamespace(is_committed=lambda folder: True))
    assert line.startswith("note: stage 02-forget: the data of tiny/word-forget were deleted")
    with pytest.raises(StateError, match="02-forget is not committed here") as error:
        without_data(plan.stages, SimpleNamespace(is_committed=lambda folder: folder != "02-forget"))
    assert error.value.where == "tiny/word-forget"


def test_an_audit_names_what_it_could_not_check(plan, monkeypatch):
    """The deleted set with the stage that forgot it, after the others were checked; gone without a request it is a problem."""
    monkeypatch.setattr("mcit.cli.common.plan_of_run", lambda run: plan)
    run = SimpleNamespace(identity=lambda: {f"recipe {t.recipe}": t.digest for t in plan.tasks})
    part = data_part(run)
    (note,) = part.notes
    assert (note.where, note.level, part.checked, part.problems) == ("tiny/word-forget", "note", 3, [])
    assert "deleted after its stage, 02-forget, was committed" in note.what

    def unplanned(run):
        raise StateError("x", where="tiny/letter", fix="restore it")

    monkeypatch.setattr("mcit.cli.common.plan_of_run", unplanned)
    part = data_part(run)
    assert part.notes == [] and [p.where for p in part.problems] == ["tiny/letter"]


@pytest.mark.slow
def test_a_run_whose_request_was_deleted_is_extended_resumed_scored_and_exported(tmp_path, monkeypatch, capsys):
    """Rows, pictures and what was built of them are deleted after the stage; then the recipe too."""
    monkeypatch.chdir(tmp_path)
    data, cache = tmp_path / "request", tmp_path / "cache" / "data"
    recipe = recipe_file(data, train=rows(6), test=rows(3, prefix="t"), eval={"scorer": "exact", "style": "word"})
    config = {
        "name": "asked", "base": {"family": "tiny", "dtype": "fp32"}, "engine": {"micro_batch": 4, "workers": 0},
        "defaults": {
            "adapter": {"rank": 4, "alpha": 8, "also_train": []}, "max_steps": 2, "optim": {"batch": 4, "warmup": 0}
        },
        "stages": [STAGES[0], {**STAGES[1], "forget": str(recipe)}],
        "eval": {"batch": 8, "rows": 3, "max_new_tokens": 2, "kit": {"rows": 3, "membership": [], "perturbed": 1}},
    }  # fmt: skip

    def run(stages):
        (tmp_path / "asked.yaml").write_text(yaml.safe_dump({**config, "stages": stages}))
        return main(["run", "asked.yaml", "--runs-dir", "runs"])

    monkeypatch.setenv("MCIT_CACHE", str(tmp_path / "cache"))
    assert run(config["stages"]) == 0
    (root,) = (tmp_path / "runs").glob("asked-*")
    before = {p: p.read_bytes() for k in ("01", "02") for p in root.rglob(f"*{k}*/**/*") if p.is_file()}
    assert (root / "kit" / "after-02" / "02-forget" / "kit.json").is_file() and (
        root / "evals" / "after-02" / "task"
    ).is_dir()
    shutil.rmtree(data / "images")
    for path in (data / "train.json", data / "test.json"):
        path.unlink()
    for folder in cache.glob("some-task-*"):
        shutil.rmtree(folder)

    capsys.readouterr()
    assert run([*config["stages"], STAGES[2]]) == 0, capsys.readouterr().err
    assert "were deleted: no score, kit or attack" in " ".join("".join(capsys.readouterr()).split())
    assert (root / "evals" / "after-03" / "yesno").is_dir() and not (root / "evals" / "after-03" / "task").exists()
    assert not (root / "kit" / "after-03").exists() and all(p.read_bytes() == was for p, was in before.items())
    (entry,) = json.loads((root / "report" / "report.json").read_text())["forget"]
    assert entry["after"] is not None and entry["later"] == {"03-yesno": None}

    capsys.readouterr()
    assert main(["audit", str(root)]) == 0
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and f"note: {recipe}: not checked" in said and "its stage, 02-forget," in said
    assert main(["audit", str(root), "--json"]) == 0
    assert [note["where"] for note in json.loads(capsys.readouterr().out)["notes"]] == [str(recipe)]
    weights = next((root / "stages" / "03-yesno").rglob("*.safetensors")).read_bytes()
    recipe.unlink()
    assert main(["rollback", str(root), "--to-stage", "2", "--yes"]) == 0
    assert main(["resume", str(root)]) == 0
    assert next((root / "stages" / "03-yesno").rglob("*.safetensors")).read_bytes() == weights
    assert main(["export", str(root), "--stage", "3", "--as", "merged", "--out", str(tmp_path / "out")]) == 0
    assert main(["attack", str(root), "--stage", "2", "--kind", "relearn"]) == 2
    assert main(["run", "asked.yaml", "--runs-dir", "runs", "--new"]) != 0, "a new run cannot forget what is not there"
