"""``mcit reject``: go on without a stage that its gate set aside, in somebody's name."""

from __future__ import annotations

import argparse
from typing import Any

from mcit.cli.promote import decided, decision_parser


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    decision_parser(verbs, "reject", "go on without a stage that its gate set aside")


def run(args: argparse.Namespace) -> int:
    """The stage stays aside, and the sequence goes on from the one before it."""
    from mcit.runs.gates import reject

    return decided(args, reject)
