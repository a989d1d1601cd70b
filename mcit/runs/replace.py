"""Replace files inside committed stages as one: new ones are written beside the run's, renamed in one step, then moved in.

The rename of ``replacing/`` decides: from then on the new files hold, and whoever opens the run next finishes the move. Made
for requests to forget, after which the old bytes must not be there any more; the certificate comes with the new ones. Call
everything under the lock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mcit.core.errors import StateError
from mcit.core.files import (
    canonical_json,
    explained,
    read_json,
    remove_temporaries,
    rename_directory,
    sha256_bytes,
    write_bytes,
)
from mcit.core.records import Manifest
from mcit.core.stored import MANIFEST, check_manifest, read_sealed, seal, write_manifest
from mcit.runs.layout import REMOVED, RunLayout
from mcit.runs.ledger import Ledger

CERTIFICATE = "certificate.json"
"""Of a request to forget: once it is in its place the ledger has its line."""
FEATURES = "features.safetensors"
"""Beside it: features of the rows that are left."""


def replace_in_stages(
    layout: RunLayout, files: Mapping[str, Mapping[str, bytes]], *, certificate: Mapping[str, bytes]
) -> None:
    """By stage folder, the new content of files that its manifest lists, by their path in it; manifests follow.

    `certificate` has files of the request's own, by their path in the run. Raises StateError for a file
    that a stage does not have.
    """
    new: dict[str, bytes] = {}
    for folder, contents in files.items():
        manifest = read_sealed(layout.stage(folder) / MANIFEST, Manifest)
        for relative, data in contents.items():
            if relative not in manifest["files"]:
                what = "is not a file of the stage, so it cannot be replaced"
                raise StateError(what, where=str(layout.stage(folder) / relative), fix=Manifest.fix)
            manifest["files"][relative] = {"bytes": len(data), "sha256": sha256_bytes(data)}
            new[f"{folder}/{relative}"] = data
        new[f"{folder}/{MANIFEST}"] = (canonical_json(seal(manifest), indent=1) + "\n").encode()
    work = layout.replacing.with_name(f".{layout.replacing.name}{REMOVED}")
    with explained(work):
        shutil.rmtree(work, ignore_errors=True)
        for name, data in [*((f"stages/{name}", data) for name, data in new.items()), *certificate.items()]:
            write_bytes(work / name, data)
        write_manifest(work)
        rename_directory(work, layout.replacing)
    finish(layout)


def finish(layout: RunLayout) -> bool:
    """Move decided files in, if there are any; may be killed and called again. Returns whether there were any.

    Raises StateError when they were changed since they were written.
    """
    folder = layout.replacing
    if not folder.is_dir():
        return False
    try:
        names = check_manifest(folder)["files"]
    except StateError as error:
        raise StateError(error.what, where=error.where, fix="restore the file from a copy") from None
    for name in names:
        target = layout.root / name
        remove_temporaries(target.parent, of=target.name)  # a kill here left one: a committed stage holds no other file
        write_bytes(target, (folder / name).read_bytes())
    stages = {Path(name).parent.name: entry["sha256"] for name, entry in names.items() if Path(name).name == MANIFEST}
    Ledger(layout.ledger).append("replaced", stages=stages)
    for request in (Path(name) for name in names if Path(name).name == CERTIFICATE):
        rows, digest = len(read_json(layout.root / request)["rows"]), names[str(request)]["sha256"]
        Ledger(layout.ledger).append("forgotten", rows=rows, certificate=request.parent.name, sha256=digest)
    hidden = folder.with_name(f".{folder.name}{REMOVED}")
    with explained(folder):
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return True
