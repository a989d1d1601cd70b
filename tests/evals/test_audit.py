"""Parts of an audit that need no model; whole audits are in tests/evals/test_certificate.py."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mcit.cli.main import main
from mcit.core.errors import Problem, StateError
from mcit.core.files import canonical_json, read_json, sha256_bytes, sha256_file, write_json
from mcit.core.stored import seal, write_sealed
from mcit.evals.audit import Part, audit
from mcit.runs.extend import open_or_extend
from mcit.runs.replace import replace_in_stages
from mcit.runs.run import root_files
from tests.fakes.run_dir import older, opened, resolved, whole
from tests.fakes.small import Killed


def test_a_part_counts_and_keeps_every_problem(tmp_path):
    part = Part("x")
    part.check(lambda: None)
    part.check(lambda: iter([Problem("a", "b", "c")]))

    def fails():
        raise StateError("d", where="e", fix="f")

    part.check(fails)
    part.check(lambda: (tmp_path / "none").read_bytes())
    assert part.checked == 4 and [p.what for p in part.problems] == ["b", "d", "file is missing"]


def test_a_run_whose_ledger_is_gone(tmp_path):
    run = whole(tmp_path)
    assert [p for part in audit(run) for p in part.problems] == []
    run.layout.ledger.unlink()
    (problem,) = [p for part in audit(run) for p in part.problems]
    assert (problem.where, problem.what) == (str(run.layout.ledger), "file is missing")


def problems(run):
    return [(p.where, p.what) for part in audit(run) for p in part.problems]


def notes(run):
    return [note.what for part in audit(run) for note in part.notes]


def resealed(run, change):
    """plan.json changed, with a manifest that says so: as somebody does who knows how."""
    plan = read_json(run.layout.plan)
    change(plan)
    write_json(run.layout.plan, plan)
    write_sealed(run.layout.manifest, {"files": {p.name: entry(p) for p in root_files(run.layout)}})


def entry(path):
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def test_root_files_are_those_that_the_ledger_says(tmp_path):
    """Also after an extension; a run of an older mcit, whose ledger has no checksums of them, is audited with a note."""
    run = whole(tmp_path / "runs")
    other = "is not the file that the ledger says the run was begun or extended with"
    kept = {path: path.read_bytes() for path in (run.layout.plan, run.layout.manifest)}
    resealed(run, lambda plan: plan["stages"][0].update(rows=1))
    assert run.plan()["stages"][0]["rows"] == 1 and problems(run) == [(str(run.layout.plan), other)]
    for path, data in kept.items():
        path.write_bytes(data)
    run = opened(tmp_path / "runs", resolved(stages=("a", "b", "c")), by=open_or_extend)
    assert run.ledger.events("extended") and problems(run) == [] == notes(run)
    extended = {path: path.read_bytes() for path in (*root_files(run.layout), run.layout.manifest)}
    resealed(run, lambda plan: plan["stages"][2].update(rows=1))
    assert problems(run) == [(str(run.layout.plan), other)]
    older(run, created="files", extended="files")
    assert problems(run) == [] and "not compared with the ledger" in notes(run)[0]
    for path, data in extended.items():
        path.write_bytes(data)
    assert problems(run) == []


def test_an_extension_that_was_stopped_before_it_began(tmp_path, monkeypatch):
    """Its line is there and its files are not: the run is as before, which is in order until a later stage was begun."""

    def killed(*args):
        raise Killed

    run = whole(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mcit.runs.rewrite.prepare", killed)
        with pytest.raises(Killed):
            opened(tmp_path, resolved(stages=("a", "b", "c")), by=open_or_extend)
    assert problems(run) == [] and "stopped before it began" in notes(run)[0]
    run.ledger.append("stage_started", stage="03-c")
    assert {Path(where).name for where, _ in problems(run)} == {"config.yaml", "plan.json", "resolved.yaml"}


def test_signing_goes_on_where_a_kill_tore_its_line(tmp_path, capsys):
    """An audit alone says so and changes nothing; the one that signs cuts the line off, as every command that writes."""
    run, key = whole(tmp_path / "runs"), tmp_path / "key.pem"
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    given = ["audit", str(run.layout.root), "--no-data"]
    with open(run.layout.ledger, "a") as ledger:
        ledger.write('{"event": "sig')
    torn = run.layout.ledger.read_bytes()
    assert main(given) == 5 and "a kill tore it" in capsys.readouterr().err
    assert run.layout.ledger.read_bytes() == torn
    assert main([*given, "--sign", str(key)]) == 0
    assert f"note: {run.layout.ledger}: the last line was torn and is cut off" in capsys.readouterr().err
    assert [event["event"] for event in run.ledger.events()][-1] == "signed" and main(given) == 0


def test_a_key_is_read_before_the_run_is(tmp_path, capsys, monkeypatch):
    """Of a large run every file is read: a key that is none is told first."""
    run = whole(tmp_path / "runs")
    monkeypatch.setattr("mcit.evals.audit.audit", lambda *args, **given: pytest.fail("the run is read"))
    assert main(["audit", str(run.layout.root), "--no-data", "--sign", str(tmp_path / "none.pem")]) == 2
    assert "none.pem cannot be read as a key" in capsys.readouterr().err


def test_what_a_request_to_forget_left_is_what_the_ledger_knows(tmp_path):
    run = whole(tmp_path)
    features = b"features"
    record = {"rows": [], "limit": 1e-10, "heads": [], "gamma": {}, "not_covered": []}

    def certificate(**more):
        return (canonical_json(seal({**record, **more}), indent=1) + "\n").encode()

    left = certificate(features_sha256=sha256_bytes(features))
    home = "certificates/0001"
    given = {f"{home}/certificate.json": left, f"{home}/features.safetensors": features}
    replace_in_stages(run.layout, {}, certificate=given)

    def wrong():
        return [(p.where, p.what) for part in audit(run) for p in part.problems]

    assert wrong() == []
    for name, new, what in (
        ("certificate.json", left[:-9], "not valid JSON"),
        ("certificate.json", certificate(), "is not the certificate that the ledger"),
        ("certificate.json", None, "file is missing"),
        ("features.safetensors", b"feature", "is not the file that its certificate names"),
        ("features.safetensors", None, "file is missing"),
    ):
        path = run.layout.root / home / name
        path.write_bytes(new) if new else path.unlink()
        ((where, said),) = wrong()
        assert where == str(path) and what in said, said
        path.write_bytes(given[f"{home}/{name}"])
    (run.layout.certificates / "0001").rename(run.layout.certificates / "0002")
    unknown = "is the certificate of a request that the ledger does not know"
    assert [said for _, said in wrong()] == ["file is missing", unknown]
