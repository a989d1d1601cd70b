import pytest

from mcit.core.errors import StateError
from mcit.core.files import sha256_file
from mcit.core.stored import check_manifest
from mcit.evals.audit import audit
from mcit.runs import replace
from mcit.runs.run import Run
from tests.fakes.run_dir import resolved, whole


def test_files_and_manifests_change_together_even_after_a_kill(tmp_path, monkeypatch):
    run = whole(tmp_path, resolved(stages=("a", "b")))
    folders = run.stage_folders()
    names = sorted(p.relative_to(run.stage(folders[0])).as_posix() for p in run.stage(folders[0]).rglob("*.json"))
    name = next(n for n in names if n != "manifest.json")
    old = {f: (run.stage(f) / name).read_bytes() for f in folders}
    files = {folder: {name: b'{"new": 1}\n'} for folder in folders}
    request = {"certificates/0001/certificate.json": b'{"rows": [1, 2]}\n', "certificates/0001/more": b"x"}
    with monkeypatch.context() as patch:  # killed between decision and move
        patch.setattr(replace, "finish", lambda layout: None)
        replace.replace_in_stages(run.layout, files, certificate=request)
    assert all((run.stage(f) / name).read_bytes() == old[f] for f in folders) and run.layout.replacing.is_dir()
    assert any("while its new files" in p.what for part in audit(run) for p in part.problems)
    target = run.stage(folders[1]) / name
    target.with_name(f".{target.name}.abcdefgh.tmp").write_bytes(b"")  # killed once more, in the middle of the move
    again = Run(run.layout.root)
    with again.locked():  # whoever opens it next finishes
        pass
    for folder in folders:
        assert (run.stage(folder) / name).read_bytes() == b'{"new": 1}\n'
        check_manifest(run.stage(folder))
    assert all((run.layout.root / path).read_bytes() == data for path, data in request.items())
    assert [(line["rows"], line["certificate"]) for line in run.ledger.events("forgotten")] == [(2, "0001")]
    assert not run.layout.replacing.exists() and not replace.finish(run.layout)
    manifests = {folder: sha256_file(run.stage(folder) / "manifest.json") for folder in folders}
    assert [line["stages"] for line in run.ledger.events("replaced")] == [manifests]


def test_only_files_of_the_stage(tmp_path):
    run = whole(tmp_path, resolved(stages=("a",)))
    with pytest.raises(StateError, match="is not a file of the stage"):
        replace.replace_in_stages(run.layout, {run.stage_folders()[0]: {"other.json": b""}}, certificate={})
    assert not run.layout.replacing.exists()
