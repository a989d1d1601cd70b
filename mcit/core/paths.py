"""Where shipped configs, recipes and cached data are found."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def shipped(kind: str) -> Path:
    """Folder of ``configs`` or ``data_recipes``: beside the package in a checkout, inside it in a wheel."""
    beside = _PACKAGE.parent / kind
    return (
        beside if beside.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "_shipped" / kind
    )


def find_shipped(kind: str, name: str) -> Path | None:
    """A user's own path wins; otherwise ``name`` or ``name.yaml`` among the shipped files; None if nowhere."""
    for candidate in (Path(name), shipped(kind) / name, shipped(kind) / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    return None


def where_looked(path: Path | str) -> str:
    """What to do about a file that is not there: where a relative path was looked for."""
    start = "" if Path(path).is_absolute() else f": it starts at the folder of the command, {Path.cwd()}"
    return f"check the path{start}"


def data_dir() -> Path:
    """Where the user keeps data sets that recipes name by folder: ``$MCIT_DATA``, else ``data`` in the current folder."""
    return Path(os.environ.get("MCIT_DATA") or "data")


def cache_dir() -> Path:
    """``$MCIT_CACHE``, else ``$XDG_CACHE_HOME/mcit``, else ``~/.cache/mcit``."""
    if os.environ.get("MCIT_CACHE"):
        return Path(os.environ["MCIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcit"
