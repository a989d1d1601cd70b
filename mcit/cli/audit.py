"""``mcit audit``: whether a run is what its ledger and its certificates say; sign it, and check a signature."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.cli.common import print_json
from mcit.core.errors import McitError, Problem, StateError

if TYPE_CHECKING:
    from mcit.evals.audit import Part
    from mcit.runs.run import Run


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser("audit", help="check ledger, stages, certificates, data and exports of a run; sign it")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--sign", metavar="KEY", help="sign what was found in order with this private key (PEM, Ed25519)"
    )
    parser.add_argument("--key", metavar="PUBLIC", help="also check the signature with this public key (PEM, Ed25519)")
    parser.add_argument("--no-data", action="store_true", help="leave out data sets, which may lie on another machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(verb="audit")


def run(args: argparse.Namespace) -> int:
    """Check everything, say what was checked; raise one error with all that is wrong."""
    from mcit.evals.audit import audit
    from mcit.runs.run import open_existing
    from mcit.runs.signature import private_key, sign

    if args.sign:
        private_key(Path(args.sign))  # before every file of the run is read
    found, signed = open_existing(Path(args.run)), None
    with contextlib.ExitStack() as writing:
        if args.sign:  # it adds a line to the ledger: one that a kill tore goes first, as in every command that writes
            writing.enter_context(found.lock.held())
            for what in found.ledger.cut_torn():
                print(f"note: {found.layout.ledger}: {what}", file=sys.stderr)
        parts = audit(found, key=Path(args.key) if args.key else None)
        if not args.no_data:
            parts.append(data_part(found))
        problems = [problem for part in parts for problem in part.problems]
        notes = [note for part in parts for note in part.notes]
        if not args.json:
            for part in parts:
                print(f"{part.name}: {part.checked} checked, {len(part.problems) or 'nothing'} wrong")
                for note in part.notes:
                    print(f"  note: {note.head}")
        if problems:
            raise StateError.of(problems)
        if args.sign:
            with found.locked():
                signed = sign(found, Path(args.sign))
    if args.json:
        checked = {part.name: part.checked for part in parts}
        out = {"run": str(found.layout.root), "checked": checked, **({"signed": signed} if signed else {})}
        print_json({**out, "notes": [{"where": note.where, "what": note.what} for note in notes]})
    elif signed:
        print(f"signed: {found.layout.certificates / 'statement.json'}, {signed['lines']} lines of the ledger")
    return 0


def data_part(found: Run) -> Part:
    """Data sets of every stage: each file of them, and the recipe's digest as the run knows it. Those that were deleted after
    the stage that forgets them was committed are named, not checked; any other that is gone is a problem."""
    from mcit.cli.common import plan_of_run
    from mcit.evals.audit import Part

    part = Part("data")
    try:
        from mcit.data.folder import DataFolder
        from mcit.plan.datasets import readable
        from mcit.plan.gone import gone

        known, plan = found.identity(), plan_of_run(found)
    except McitError as error:
        return Part("data", 0, list(error.problems))
    for name in dict.fromkeys(name for stage in plan.stages for name in gone(stage)):
        after = ", ".join(stage.folder for stage in plan.stages if name in gone(stage))
        what = f"not checked: the data of this request were deleted after its stage, {after}, was committed"
        part.notes.append(Problem(name, what, level="note"))
    for task in readable(plan):

        def check(name: str = task.recipe, folder: Path = Path(task.folder)) -> Any:
            digest = DataFolder.open(folder).digest
            if digest != known.get(f"recipe {name}"):
                yield Problem(str(folder), f"is not the data that recipe {name} had when the run began", "restore it")

        part.check(check)
    return part
