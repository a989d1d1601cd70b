"""Replace the root files of a run as one: the new ones are written beside them, renamed in one step, then moved in.

The rename of ``extension/`` decides: from then on the new files hold, and whoever opens the run next finishes the move.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from mcit.core.errors import StateError
from mcit.core.files import explained, rename_directory, write_bytes
from mcit.core.stored import MANIFEST, check_manifest, write_manifest
from mcit.runs.layout import REMOVED, RunLayout


def prepare(layout: RunLayout, files: Mapping[str, bytes]) -> None:
    """Write the new root files by name and decide for them. Call it under the lock, with nothing pending."""
    work = layout.extension.with_name(f".{layout.extension.name}{REMOVED}")  # a leftover is removed like any other
    with explained(work):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name, data in files.items():
            write_bytes(work / name, data)
        write_manifest(work)
        rename_directory(work, layout.extension)


def finish(layout: RunLayout) -> bool:
    """Move decided files in, if there are any; may be killed and called again. Call it under the lock.

    Returns whether there were any. Raises StateError when they were changed since they were written.
    """
    folder = layout.extension
    if not folder.is_dir():
        return False
    try:
        check_manifest(folder)
    except StateError as error:
        raise StateError(error.what, where=error.where, fix="restore the file from a copy") from None
    names = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST)
    for name in [*names, MANIFEST]:
        write_bytes(layout.root / name, (folder / name).read_bytes())
    hidden = folder.with_name(f".{folder.name}{REMOVED}")
    with explained(folder):
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return True
