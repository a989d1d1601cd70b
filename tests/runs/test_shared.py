import json
import os
import shutil

import pytest

from mcit.core.errors import StateError
from mcit.core.files import sha256_file, write_json, write_text
from mcit.core.stored import write_sealed
from mcit.runs.layout import RunLayout
from mcit.runs.shared import check_order, home, share, shared_from, users
from tests.fakes.run_dir import resolved, whole

ANSWERS = ("backend.json", "generation.json", "predictions.jsonl", "rows.json", "score.json")


@pytest.fixture
def parent(tmp_path):
    run = whole(tmp_path / "runs", resolved(stages=("a", "b", "c")))
    write_text(run.layout.evals(0) / "other" / "score.json", "of a task that the child does not have")
    for after in range(4):
        for name in (*ANSWERS, "predictions.part.jsonl"):
            write_text(run.layout.evals(after) / "task" / name, f"{name} {after}")
    write_json(run.layout.blobs / "gere-1.json", {"bytes": 3})
    write_text(run.layout.blobs / "gere-1.safetensors", "big")
    return run.layout


def test_stages_by_reference_scores_as_copies_large_tensors_as_one_file(parent):
    child = RunLayout(parent.root.parent / "child")
    share(child, parent, ["01-a", "02-b"], tasks=["task"])
    assert home(child, "01-a").resolve() == parent.stage("01-a").resolve()
    assert shared_from(child, "02-b").resolve() == parent.root.resolve() and shared_from(child, "03-c") is None
    assert home(child, "03-c") == child.stage("03-c")
    assert json.loads(child.reference("01-a").read_text())["stage"] == f"../../{parent.root.name}/stages/01-a"
    copied = sorted(str(p.relative_to(child.root)) for p in (child.root / "evals").rglob("*") if p.is_file())
    assert copied == [f"evals/{after}/task/{name}" for after in ("after-01", "after-02", "base") for name in ANSWERS]
    blob = child.blobs / "gere-1.safetensors"
    assert os.path.samefile(blob, parent.blobs / blob.name) and (child.blobs / "gere-1.json").is_file()


def test_a_reference_to_a_reference_leads_to_the_folder(parent):
    child, grandchild = (RunLayout(parent.root.parent / name) for name in ("child", "grandchild"))
    share(child, parent, ["01-a"], tasks=["task"])
    share(grandchild, child, ["01-a"], tasks=["task"])
    assert shared_from(grandchild, "01-a").resolve() == parent.root.resolve()


def test_runs_in_different_folders_refer_absolutely_and_a_moved_pair_relatively(parent, tmp_path):
    far = RunLayout(tmp_path / "elsewhere" / "child")
    share(far, parent, ["01-a"], tasks=["task"])
    assert json.loads(far.reference("01-a").read_text())["stage"] == str(parent.stage("01-a").resolve())
    near = RunLayout(parent.root.parent / "child")
    share(near, parent, ["01-a"], tasks=["task"])
    shutil.move(parent.root.parent, tmp_path / "moved")
    assert home(RunLayout(tmp_path / "moved" / "child"), "01-a").is_dir()
    with pytest.raises(StateError, match="is gone"):
        home(far, "01-a")


def test_blobs_are_copied_where_they_cannot_be_linked(parent, monkeypatch):
    def refuse(source, target):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    child = RunLayout(parent.root.parent / "child")
    share(child, parent, ["01-a"], tasks=["task"])
    share(child, parent, ["01-a"], tasks=["task"])
    blob = child.blobs / "gere-1.safetensors"
    assert blob.read_text() == "big" and not os.path.samefile(blob, parent.blobs / blob.name)
    assert len(list(child.blobs.iterdir())) == 2


def test_what_is_gone_or_another_stage_now_is_named(parent):
    child = RunLayout(parent.root.parent / "child")
    share(child, parent, ["01-a"], tasks=["task"])
    path = parent.stage("01-a") / "manifest.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(StateError, match="is another one now") as error:
        home(child, "01-a")
    assert str(parent.root.name) in str(error.value) and str(child.reference("01-a")) in str(error.value)
    shutil.rmtree(parent.root)
    with pytest.raises(StateError, match="is gone") as error:
        home(child, "01-a")
    assert "trained again in this run" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [{}, {"stage": 3, "manifest_sha256": "0" * 64}, {"stage": "../../x/stages/02-b", "manifest_sha256": "0" * 64}],
)
def test_what_is_no_reference_is_refused(parent, content):
    child = RunLayout(parent.root.parent / "child")
    write_sealed(child.reference("01-a"), content)
    with pytest.raises(StateError, match="is (not )?a reference to") as error:
        home(child, "01-a")
    assert str(child.reference("01-a")) in str(error.value)


def test_users_are_those_that_still_refer_to_the_folder(parent):
    child = RunLayout(parent.root.parent / "child")
    share(child, parent, ["01-a", "02-b"], tasks=["task"])
    children = [child.root, parent.root.parent / "removed"]
    assert users(parent, children, ["02-b", "03-c"]) == [f"02-b is shared with {child.root}"]
    child.reference("02-b").unlink()
    assert users(parent, children, ["02-b", "03-c"]) == []
    assert sha256_file(home(child, "01-a") / "manifest.json") == sha256_file(parent.stage("01-a") / "manifest.json")


def test_a_stage_that_is_gone_below_a_later_one_is_named(parent):
    child = RunLayout(parent.root.parent / "child")
    share(child, parent, ["01-a", "02-b"], tasks=["task"])
    check_order(child, ["01-a", "02-b", "03-c"])
    child.reference("02-b").unlink()
    check_order(child, ["01-a", "02-b", "03-c"])
    child.stage("02-b").mkdir()
    child.reference("01-a").unlink()
    with pytest.raises(StateError, match="is gone, and 02-b was trained on it") as error:
        check_order(child, ["01-a", "02-b", "03-c"])
    assert error.value.where == str(child.stage("01-a")) and "01-a.json" in error.value.fix
