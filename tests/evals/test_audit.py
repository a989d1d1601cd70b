"""Parts of an audit that need no model; whole audits are in tests/evals/test_certificate.py."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mcit.cli.main import main
from mcit.core.errors import Problem, StateError
from mcit.evals.audit import Part, audit
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
