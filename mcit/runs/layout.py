"""Every path of a run directory in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mcit.core.errors import StateError

COMBINATION = "combination.json"
"""Which stages are combined and how, beside the scores of a combination."""
SWEEP = "sweep.json"
"""In the folder of a sweep, beside the runs: which they are."""
KIT = "kit.json"
"""What the forgetting kit found of a stage under one model."""
REMOVED = ".removed"
"""Ending of a folder that is hidden and about to be deleted."""
_FOLDER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True)
class RunLayout:
    """Paths below the folder of one run; nothing here touches the disk."""

    root: Path

    @property
    def config(self) -> Path:
        """The config as given."""
        return self.root / "config.yaml"

    @property
    def resolved(self) -> Path:
        """The config with every default filled in."""
        return self.root / "resolved.yaml"

    @property
    def plan(self) -> Path:
        """Stages, hook table, digests."""
        return self.root / "plan.json"

    @property
    def environment(self) -> Path:
        """Versions and devices."""
        return self.root / "environment.json"

    @property
    def manifest(self) -> Path:
        """Checksums of the four files above; written last, so its existence means the run was created."""
        return self.root / "manifest.json"

    @property
    def extension(self) -> Path:
        """Root files of an extension that was decided on and is being moved in."""
        return self.root / "extension"

    @property
    def replacing(self) -> Path:
        """Files of committed stages that were decided on and are being moved in."""
        return self.root / "replacing"

    @property
    def certificates(self) -> Path:
        """What requests to forget rows left, one folder each; and ``stages``, ``statement.json``, ``statement.sig``."""
        return self.root / "certificates"

    def requests(self) -> list[Path]:
        """Folders of requests to forget rows, oldest first."""
        return sorted(p for p in self.certificates.glob("[0-9]*") if p.name.isdigit())

    def certificate(self, folder: str) -> Path:
        """The certificate of a stage."""
        return self.certificates / "stages" / f"{_checked(folder)}.json"

    @property
    def lock(self) -> Path:
        """Held by the one writer."""
        return self.root / "lock"

    @property
    def ledger(self) -> Path:
        """Append-only diary."""
        return self.root / "ledger.jsonl"

    @property
    def stages(self) -> Path:
        """Committed stages, and hidden drafts."""
        return self.root / "stages"

    def stage(self, folder: str) -> Path:
        """A stage that this run trained; exists = committed. Raises StateError for a name that would leave the run."""
        return self.stages / _checked(folder)

    def reference(self, folder: str) -> Path:
        """In place of a stage's folder where the stage is shared with another run: names the folder there."""
        return self.stages / f"{_checked(folder)}.json"

    def draft(self, folder: str) -> Path:
        """The hidden directory of a stage that is not committed."""
        return self.stages / f".{_checked(folder)}.draft"

    def lives(self, folder: str) -> Path:
        """Parent of a stage's live checkpoints."""
        return self.draft(folder) / "live"

    def live(self, folder: str, step: int) -> Path:
        """A live checkpoint after so many steps."""
        return self.lives(folder) / f"{step:06d}"

    def candidate(self, folder: str) -> Path:
        """A stage with a gate that was trained and is not decided on: its files and ``evals`` below it."""
        return self.root / "candidates" / _checked(folder)

    def aside(self, folder: str) -> Path:
        """The same of a stage that did not pass."""
        return self.root / "aside" / _checked(folder)

    def gate(self, folder: str) -> Path:
        """What a gate found and who decided."""
        return self.root / "gates" / f"{_checked(folder)}.json"

    def evals(self, after: int) -> Path:
        """Predictions and scores after so many stages; 0 is the base."""
        return self.root / "evals" / (f"after-{after:02d}" if after else "base")

    def kit(self, after: int, folder: str) -> Path:
        """What the forgetting kit found of a forget stage after so many stages; 0 is the base."""
        return self.kits(after) / _checked(folder)

    def kits(self, after: int) -> Path:
        """Parent of what the kit found after so many stages."""
        return self.root / "kit" / (f"after-{after:02d}" if after else "base")

    def gold(self, folder: str) -> Path:
        """What the kit found of a forget stage under a gold run's model."""
        return self.root / "kit" / "gold" / _checked(folder)

    def attacks(self, folder: str) -> Path:
        """Attacks on a forget stage: answers of each, and what came of them."""
        return self.root / "attacks" / _checked(folder)

    def elsewhere(self, name: str) -> Path:
        """Answers made outside the run and their scores, by the name of their file."""
        return self.root / "evals" / "elsewhere" / (re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".") or "answers")

    @property
    def combinations(self) -> Path:
        """Parent of the scores of combined adapters."""
        return self.root / "evals" / "combined"

    def combined(self, name: str) -> Path:
        """Predictions and scores of a combination of stages."""
        return self.combinations / _checked(name)

    @property
    def blobs(self) -> Path:
        """Large tensors of methods, once for the whole run."""
        return self.root / "blobs"

    @property
    def exports(self) -> Path:
        """Default place of exports."""
        return self.root / "exports"

    @property
    def logs(self) -> Path:
        """What ranks other than 0 say, and tracebacks; kept when a command on several ranks fails."""
        return self.root / "logs"

    @property
    def log(self) -> Path:
        """What was shown while the run was trained, as plain lines."""
        return self.root / "train.log"

    @property
    def profile(self) -> Path:
        """Where the time of profiled commands went."""
        return self.root / "profile.json"

    @property
    def tracking(self) -> Path:
        """Files of trackers that write to a folder."""
        return self.root / "tracking"

    @property
    def report(self) -> Path:
        """Tables and matrix."""
        return self.root / "report"

    @property
    def page(self) -> Path:
        """The report as one HTML page."""
        return self.report / "report.html"


def _checked(folder: str) -> str:
    if not _FOLDER.match(folder):
        raise StateError(
            f"'{folder}' is no name of a stage folder", where="stages", fix="use letters, digits, '.', '_', '-'"
        )
    return folder
