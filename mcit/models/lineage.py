"""Weights before and after any stage: the base plus the ordered chain of stage deltas, always applied the same way.

Adding happens in fp32 with one cast per stage, so weights do not depend on when a process was restarted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mcit.core.errors import StateError
from mcit.core.files import digest_of, sha256_file
from mcit.core.records import LineageRecord
from mcit.core.stored import read_record
from mcit.core.tensorfile import load_tensors
from mcit.models import adapters
from mcit.models.adapterfile import EXTRA, AdapterFile, read_adapter
from mcit.models.quant import is_quantised


@dataclass(frozen=True)
class Delta:
    """What one committed stage added."""

    folder: Path
    """Stage folder: ``adapter/`` for LoRA, ``weights/`` for full fine-tuning."""
    kind: str
    carry: str
    digest: str

    @property
    def index(self) -> int:
        """Stage number, from the folder's name."""
        return int(self.folder.name.split("-", 1)[0])

    def read(self) -> AdapterFile:
        """LoRA pairs and full tensors of the stage. Raises StateError for missing or damaged files."""
        if self.kind != "none":
            file = read_adapter(self.folder / "adapter")
            extra = self.folder / EXTRA
            return (
                AdapterFile(file.lora, {**file.full, **load_tensors(extra)}, file.config) if extra.is_file() else file
            )
        return AdapterFile({}, load_tensors(self.folder / "weights" / "model.safetensors"), {})


@dataclass(frozen=True)
class Lineage:
    """Base and ordered deltas that produce a set of weights."""

    base: str
    base_sha256: str
    deltas: tuple[Delta, ...] = ()

    @property
    def digest(self) -> str:
        """Identity of the weights."""
        return digest_of([self.base_sha256, [[d.kind, d.carry, d.digest] for d in self.deltas]])

    def superseded(self, position: int) -> bool:
        """Whether a delta's adapter is contained in its successor's (carry ``keep``)."""
        return self.deltas[position].carry == "keep" and position < len(self.deltas) - 1

    def position(self, number: int) -> int:
        """Where the stage of this number stands: numbers have gaps where stages were rejected."""
        return [delta.index for delta in self.deltas].index(number)


def read_lineage(stage_folders: Sequence[Path], *, base: str, base_sha256: str) -> Lineage:
    """Lineage of committed stages in order.

    Raises StateError when a stage was trained on other stages or another base than these.
    """
    deltas: list[Delta] = []
    for folder in stage_folders:
        record = read_record(folder / "lineage.json", LineageRecord)
        below = [[e["folder"], e["digest"]] for e in record["stages"]]
        if record["base_sha256"] != base_sha256:
            raise StateError("stage was trained on another base model", where=str(folder), fix="restore the base")
        if below != [[d.folder.name, d.digest] for d in deltas]:
            raise StateError(
                "stage was trained on other stages than those below it", where=str(folder), fix="restore them"
            )
        deltas.append(Delta(folder, record["kind"], record["carry"], record["digest"]))
    return Lineage(base, base_sha256, tuple(deltas))


def lineage_record(lineage: Lineage, *, kind: str, carry: str, digest: str) -> dict[str, object]:
    """Content of ``lineage.json`` of a stage trained on top of `lineage`."""
    return {
        "base": lineage.base,
        "base_sha256": lineage.base_sha256,
        "kind": kind,
        "carry": carry,
        "digest": digest,
        "stages": [
            {"folder": d.folder.name, "carry": d.carry, "kind": d.kind, "digest": d.digest} for d in lineage.deltas
        ],
    }


def delta_digest(folder: Path) -> str:
    """sha256 over the tensor files of a stage folder's delta."""
    files = sorted(
        [*folder.glob("adapter/*.safetensors"), *folder.glob("weights/*.safetensors"), *folder.glob("extra.*")]
    )
    return digest_of({str(p.relative_to(folder)): sha256_file(p) for p in files})


def apply_start(model: nn.Module, file: AdapterFile) -> None:
    """The adapter that a run was given: into the weights, or frozen beside them where they are quantised."""
    if not is_quantised(model):
        adapters.merge(model, file)
        return
    adapters.attach_groups(model, file, name="start")


def apply_lineage(model: nn.Module, lineage: Lineage) -> None:
    """Turn a freshly loaded base into the weights after the last delta, adapters that stay live attached and frozen."""
    for below, delta in zip([None, *lineage.deltas], lineage.deltas, strict=False):
        advance(model, delta, below=below)


def advance(model: nn.Module, delta: Delta, *, below: Delta | None) -> None:
    """From the weights after `below` to those after `delta`, as a run that never stopped would get there."""
    if below is not None and below.carry == "keep":
        adapters.remove(model)
    apply_delta(model, delta.read(), carry=delta.carry, index=delta.index)


def apply_delta(model: nn.Module, file: AdapterFile, *, carry: str, index: int) -> None:
    """Apply one stage's result: into the weights (merge, none), as a frozen live adapter (stack), live (keep), not (pool)."""
    if carry == "stack":
        adapters.attach(model, file, name=f"stage{index:02d}")
    elif carry == "keep":
        adapters.attach(model, file, name=adapters.ACTIVE)
    elif carry != "pool":  # a pool's adapters are put on when a row asks for one
        adapters.merge(model, file)
