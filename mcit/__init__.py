"""mcit: multimodal continual instruction tuning, stage after stage.

Layers, each importing only from those to its right:
``cli > selftest > train, export, report > plan > methods, evals, sequences, probes, routers > engine, models, data, runs >
core``

From Python: ``mcit.plan``, ``mcit.run``, ``mcit.evaluate``, ``mcit.export``, ``mcit.report``; see `mcit.api`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcit.api import Report as Report
    from mcit.api import evaluate as evaluate
    from mcit.api import export as export
    from mcit.api import plan as plan
    from mcit.api import report as report
    from mcit.api import run as run

__version__ = "0.1.0"
_PACKAGES = ("plan", "export", "report")
"""Verbs that are packages too; see `mcit.core.callable`."""
_NAMES = ("run", "evaluate", "Report")


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is first used."""
    if name in _PACKAGES:
        return import_module(f"mcit.{name}")
    if name in _NAMES:
        return getattr(import_module("mcit.api"), name)
    raise AttributeError(f"module 'mcit' has no attribute '{name}'")
