"""A built data folder: opened, verified, read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcit.core.errors import DataError, StateError
from mcit.core.hashes import sha256_files
from mcit.core.records import DataManifest
from mcit.core.stored import read_sealed
from mcit.core.types import JsonDict
from mcit.data.recipe import SPLITS, ScoringConfig
from mcit.data.rowfile import StoredRows, read_index


@dataclass(frozen=True)
class DataFolder:
    """Rows of one task, from disk."""

    path: Path
    manifest: JsonDict

    @classmethod
    def open(cls, path: Path | str) -> DataFolder:
        """Read the manifest and compare checksums of all it lists.

        Raises StateError naming the first file that is missing, cut off or edited.
        """
        path = Path(path)
        manifest = read_sealed(path / "manifest.json", DataManifest)
        listed = manifest["files"]
        for relative, digest in zip(listed, sha256_files(f"{path}/{name}" for name in listed), strict=True):
            if digest is None:
                raise StateError(
                    "file listed in the manifest is missing", where=str(path / relative), fix=DataManifest.fix
                )
            if digest != listed[relative]["sha256"]:
                raise StateError("file differs from the manifest", where=str(path / relative), fix=DataManifest.fix)
        return cls(path, manifest)

    @property
    def task(self) -> str:
        """The task the rows belong to."""
        return self.manifest["task"]

    @property
    def digest(self) -> str:
        """The recipe's digest."""
        return self.manifest["digest"]

    @property
    def eval(self) -> ScoringConfig:
        """Scorer, style and answer limit of the test split."""
        return ScoringConfig(**self.manifest["eval"])

    @property
    def counts(self) -> dict[str, int]:
        """Rows per split."""
        return {split: self.manifest["counts"][split] for split in SPLITS}

    @property
    def pad_images(self) -> bool:
        """Whether pictures are padded to squares before the model's processor."""
        return bool(self.manifest["image"]["pad"])

    def rows(self, split: str = "train") -> StoredRows:
        """Rows of a split in the recipe's order, read when they are asked for.

        They know their image root, and are told to pad pictures where the recipe does.

        Raises DataError for an unknown split.
        """
        if split not in SPLITS:
            raise DataError(f"there is no split '{split}'", where=str(self.path), fix=f"use {', '.join(SPLITS)}")
        path = self.path / f"{split}.jsonl"
        roots = {number: self._root(number) for number in self.manifest["roots"]}
        return StoredRows(path, read_index(path), roots=roots, pad_images=self.pad_images)

    def _root(self, number: str) -> str:
        outside = self.manifest["roots"][number]
        return str(self.path / "images" / number) if outside is None else outside
