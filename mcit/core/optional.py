"""Libraries that only some settings need: imported on demand, with an error that says which setting asks for it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from mcit.core.errors import ConfigError, Problem

_CURES = {
    "bitsandbytes": "install bitsandbytes 0.50 or newer, or set base.dtype: bf16 and optim.kind: adamw",
    "pyarrow": "install the extra for tables: pip install 'mcit[arrow]', or save the rows as JSON",
    "pycocoevalcap": "pip install 'mcit[captions]', or choose another scorer",
    "sklearn": "pip install 'mcit[routers]' for a router, or 'mcit[forgetting]' for the forgetting kit",
    "scipy": "pip install 'mcit[forgetting]'",
    "rouge_score": "pip install 'mcit[forgetting]'",
    "tensorboard": "pip install 'mcit[tensorboard]', or leave it out of track",
    "wandb": "pip install 'mcit[wandb]', or leave it out of track",
    "mlflow": "pip install 'mcit[mlflow]', or leave it out of track",
    "trackio": "pip install 'mcit[trackio]', or leave it out of track",
    "faiss": "pip install 'mcit[memory]'",
    "cryptography": "pip install 'mcit[sign]'",
    "vllm": "pip install 'mcit[vllm]' on a machine with a GPU, or set eval.backend: own",
}


def needed(library: str, *, where: str) -> Any:
    """The library's module. Raises ConfigError, naming the setting `where`, when it cannot be imported."""
    try:
        return import_module(library)
    except Exception as error:  # a library built for other hardware fails in its own ways
        raise ConfigError(
            f"needs {library}, which cannot be imported here ({type(error).__name__}: {error})",
            where=where,
            fix=_CURES.get(library.partition(".")[0], f"install {library}"),
        ) from error


def missing(library: str, *, where: str) -> list[Problem]:
    """The same as a list of problems, empty when the library is there."""
    try:
        needed(library, where=where)
    except ConfigError as error:
        return list(error.problems)
    return []


@contextlib.contextmanager
def unseen(library: str) -> Iterator[None]:
    """In this block importing `library` fails as if it were not installed, unless it is loaded already.

    For a library that another one imports wherever it is installed: bitsandbytes by peft, with torch's compiler behind it,
    which is more than a second that only quantised bases need.
    """
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]
