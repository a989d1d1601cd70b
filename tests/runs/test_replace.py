import pytest

from mcit.core.errors import StateError
from mcit.core.files import sha256_file
from mcit.core.stored import check_manifest
from mcit.runs import replace
from mcit.runs.run import Run
from tests.fakes.run_dir import resolved, whole


def test_files_and_manifests_change_together_even_after_a_kill(tmp_path, monkeypatch):
    run = whole(tmp_path, resolved(stages=("a", "b")))
    folders = run.stage_folders()
    names = sorted(p.relative_to(run.stage(folders[0])).as_posix() for p in run.stage(folders[0]).rglob("*.json"))
    name = next(n for n in names if n != "manifest.json")
    old = {f: (run.stage(f) / name).read_bytes() for f in folders}
    with monkeypatch.context() as patch:  # killed between decision and move
        patch.setattr(replace, "finish", lambda layout: None)
        replace.replace_in_stages(run.layout, {folder: {name: b'{"new": 1}\n'} for folder in folders})
    assert all((run.stage(f) / name).read_bytes() == old[f] for f in folders) and run.layout.replacing.is_dir()
    again = Run(run.layout.root)
    with again.locked():  # whoever opens it next finishes
        pass
    for folder in folders:
        assert (run.stage(folder) / name).read_bytes() == b'{"new": 1}\n'
        check_manifest(run.stage(folder))
    assert not run.layout.replacing.exists() and not replace.finish(run.layout)
    manifests = {folder: sha256_file(run.stage(folder) / "manifest.json") for folder in folders}
    assert [line["stages"] for line in run.ledger.events("replaced")] == [manifests]


def test_only_files_of_the_stage(tmp_path):
    run = whole(tmp_path, resolved(stages=("a",)))
    with pytest.raises(StateError, match="is not a file of the stage"):
        replace.replace_in_stages(run.layout, {run.stage_folders()[0]: {"other.json": b""}})
    assert not run.layout.replacing.exists()
