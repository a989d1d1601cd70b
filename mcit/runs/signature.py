"""A signature of somebody's own key over a run as it stands: `statement.json` beside a detached `statement.sig` (Ed25519).

The statement names the last line of the ledger, which is chained to all lines before it, and the checksum of each certificate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, Problem, StateError
from mcit.core.files import canonical_json, read_bytes, read_given, sha256_bytes, sha256_file, write_bytes
from mcit.core.optional import needed
from mcit.core.records import StatementRecord
from mcit.core.stored import read_sealed, seal
from mcit.core.types import JsonDict
from mcit.runs.chain import Chain, read_chain
from mcit.runs.ledger import chained
from mcit.runs.run import Run

_RESTORE = "restore it from a copy, or sign again: mcit audit RUN --sign KEY"


def sign(run: Run, key: Path) -> JsonDict:
    """Sign a run with a private key (PEM, Ed25519, no password); call it under the lock. Returns the statement.

    Raises ConfigError for another kind of key, StateError for a ledger whose chain is broken.
    """
    private = private_key(key)
    broken = read_chain(run.layout.ledger).problems
    if broken:
        raise StateError.of(broken)
    raw = needed("cryptography.hazmat.primitives.serialization", where="--sign")
    public = private.public_key().public_bytes(raw.Encoding.Raw, raw.PublicFormat.Raw)
    run.ledger.append("signed", key_sha256=sha256_bytes(public))
    chain, folder = read_chain(run.layout.ledger), run.layout.certificates
    statement = {
        "run": chain.run,
        "lines": len(chain.lines),
        "last_sha256": chained(chain.lines[-1]),
        "certificates": {p.stem: sha256_file(p) for p in sorted((folder / "stages").glob("[!.]*.json"))},
    }
    data = (canonical_json(seal(statement), indent=1) + "\n").encode()
    write_bytes(folder / "statement.sig", private.sign(data))
    write_bytes(folder / "statement.json", data)
    return statement


def private_key(path: Path) -> Any:
    """What can sign. Raises ConfigError for a file that holds no such key."""
    return _key(path, "load_pem_private_key", "Ed25519PrivateKey", where="--sign", password=None)


def check_signature(run: Run, chain: Chain, *, key: Path | None) -> Iterator[Problem]:
    """What is wrong with the statement of a run, and with its signature where a public key (PEM) is given.

    A ledger may have gone on since. Raises StateError where there is no statement, ConfigError for a file that is no key.
    """
    path = run.layout.certificates / "statement.json"
    if not path.is_file():
        raise StateError("the run was not signed", where=str(path), fix="sign it: mcit audit RUN --sign KEY")
    found = read_sealed(path, StatementRecord)
    if key is not None:
        public = _key(key, "load_pem_public_key", "Ed25519PublicKey", where="--key")
        invalid = needed("cryptography.exceptions", where="--key").InvalidSignature
        try:
            public.verify(read_bytes(path.with_suffix(".sig")), read_bytes(path))
        except invalid:
            yield Problem(
                str(path.with_suffix(".sig")), "is not the signature of this key over the statement", _RESTORE
            )
    if found["run"] != chain.run:
        yield Problem(str(path), "is the statement of another run", _RESTORE)
        return
    lines = chain.lines[: found["lines"]]
    if len(lines) < found["lines"] or chained(lines[-1]) != found["last_sha256"]:
        where = f"{run.layout.ledger}:{found['lines']}"
        yield Problem(where, "is not the line that was signed: lines were changed or cut off since", _RESTORE)
    for folder, digest in found["certificates"].items():
        later = [e for e in chain.events[found["lines"] :] if e and _ends(e, folder)]
        certificate = run.layout.certificate(folder)
        if not later and (not certificate.is_file() or sha256_file(certificate) != digest):
            yield Problem(str(certificate), "is not the certificate that was signed", _RESTORE)


def _ends(event: JsonDict, folder: str) -> bool:
    """Whether a certificate was issued anew or removed, as the ledger says."""
    gone = event["event"] == "rollback" and folder in event["removed"]
    return gone or (event["event"] == "certified" and event.get("stage") == folder)


def _key(path: Path, load: str, kind: str, *, where: str, **given: Any) -> Any:
    """A key of a PEM file. Raises ConfigError for a file that holds none of this kind."""
    wanted = getattr(needed("cryptography.hazmat.primitives.asymmetric.ed25519", where=where), kind)
    read = getattr(needed("cryptography.hazmat.primitives.serialization", where=where), load)
    fix = "openssl genpkey -algorithm ed25519 -out KEY; openssl pkey -in KEY -pubout -out PUBLIC"
    refused = needed("cryptography.exceptions", where=where).UnsupportedAlgorithm
    try:
        key = read(read_given(path), **given)
    except (OSError, ValueError, TypeError, refused) as error:
        raise ConfigError(f"{path} cannot be read as a key ({type(error).__name__})", where=where, fix=fix) from None
    if not isinstance(key, wanted):
        raise ConfigError(f"{path} holds another kind of key than Ed25519", where=where, fix=fix)
    return key
