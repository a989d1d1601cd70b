"""Parts of an audit that need no model; whole audits are in tests/evals/test_certificate.py."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mcit.cli.main import main
from mcit.core.errors import Problem, StateError
from mcit.core.files import canonical_json, sha256_bytes
from mcit.core.stored import seal
from mcit.evals.audit import Part, audit
from mcit.runs.replace import replace_in_stages
from tests.fakes.run_dir import whole


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
