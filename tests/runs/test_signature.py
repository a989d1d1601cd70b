"""A signature over a run of toy stages: valid while the run only goes on, and what breaks it."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mcit.core.errors import ConfigError, StateError
from mcit.core.files import write_bytes
from mcit.runs.chain import read_chain
from mcit.runs.signature import check_signature, sign
from tests.fakes.run_dir import whole


def pair(folder, name, key=None):
    key = key or ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(pem, *plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(tmp_path):
    run = whole(tmp_path / "runs")
    write_bytes(run.layout.certificate("01-a"), b"{}")
    private, public = pair(tmp_path, "mine")
    with run.locked():
        statement = sign(run, private)
    return run, public, statement


def found(run, public):
    return [p.what for p in check_signature(run, read_chain(run.layout.ledger), key=public)]


def test_it_holds_while_the_run_goes_on(signed):
    run, public, statement = signed
    assert found(run, public) == found(run, None) == []
    assert statement["lines"] == len(run.ledger.events()) and run.ledger.events()[-1]["event"] == "signed"
    write_bytes(run.layout.certificate("01-a"), b"{ }")
    assert found(run, public) == ["is not the certificate that was signed"]
    run.ledger.append("certified", stage="01-a", id="0" * 64, sha256="0" * 64)
    assert found(run, public) == [], "a later one is for the audit to compare with the ledger"


def test_what_breaks_it(signed, tmp_path):
    run, public, _ = signed
    assert found(run, pair(tmp_path, "other")[1]) == ["is not the signature of this key over the statement"]
    data = run.layout.ledger.read_bytes()
    write_bytes(run.layout.ledger, data[: data[:-1].rindex(b"\n") + 1])
    assert found(run, public) == ["is not the line that was signed: lines were changed or cut off since"]
    write_bytes(run.layout.ledger, data)
    path = run.layout.certificates / "statement.sig"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert found(run, public) == ["is not the signature of this key over the statement"]
    path.unlink()
    with pytest.raises(StateError, match="file is missing"):
        found(run, public)
    other = whole(tmp_path / "another")
    write_bytes(other.layout.certificates / "statement.json", (run.layout.certificates / "statement.json").read_bytes())
    assert found(other, None) == ["is the statement of another run"]


def test_what_is_refused(tmp_path):
    run = whole(tmp_path / "runs")
    with pytest.raises(StateError, match="the run was not signed"):
        found(run, pair(tmp_path, "mine")[1])
    elliptic = pair(tmp_path, "elliptic", ec.generate_private_key(ec.SECP256R1()))[0]
    (tmp_path / "text").write_text("no key")
    with run.locked():
        with pytest.raises(ConfigError, match="another kind of key"):
            sign(run, elliptic)
        for name in ("text", "none"):
            with pytest.raises(ConfigError, match="cannot be read as a key"):
                sign(run, tmp_path / name)
        data = run.layout.ledger.read_bytes()
        write_bytes(run.layout.ledger, data[:9] + b"X" + data[10:])
        with pytest.raises(StateError, match="is not the line that was written"):
            sign(run, pair(tmp_path, "mine")[0])
    assert not (run.layout.certificates / "statement.json").exists()
