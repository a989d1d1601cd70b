"""Recipe -> content-addressed folder of rows, and the report of what stands in the way.

Layout: ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``images/<source>/`` for generated pictures, and
``manifest.json``, written last. The folder's name holds the recipe's digest: equal recipes share it, a changed source
gets a new one. Where rows name pictures outside, ``pictures.jsonl`` lists them with checksums, which belong to the digest of
the data set, and the name says by content and place which pictures these are: one is never taken for another.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from mcit.core.errors import DataError, Problem, StateError
from mcit.core.files import (
    canonical_json,
    digest_of,
    explained,
    rename_directory,
    sha256_file,
    write_text,
)
from mcit.core.paths import cache_dir
from mcit.core.records import DataManifest
from mcit.core.seeds import seed_for
from mcit.core.stored import read_sealed, write_manifest, write_sealed
from mcit.core.types import JsonDict, Row
from mcit.data import pictures
from mcit.data.collect import Collected, collect
from mcit.data.recipe import SPLITS, FileSource, Recipe, Split, SplitConfig, recipe_digest
from mcit.data.rowfile import RowWriter, write_index
from mcit.data.transforms.base import RowTransform


@dataclass(frozen=True)
class CheckReport:
    """What a build of the recipe would find."""

    name: str
    counts: dict[str, int]
    """Rows per split that would be kept, transforms included."""
    styles: dict[str, dict[str, int]]
    bad: tuple[Problem, ...]
    """Rows that would be dropped."""
    fatal: tuple[Problem, ...]
    """Sources that cannot be used at all."""
    warnings: tuple[Problem, ...]
    allowed: int
    """Bad rows the recipe allows."""

    @property
    def ok(self) -> bool:
        """Whether `build` would succeed."""
        return not self.fatal and len(self.bad) <= self.allowed


@dataclass(frozen=True)
class _Result:
    rows: dict[Split, list[Row]]
    steps: list[dict[str, Any]]
    """What each transform made of how many rows."""
    warnings: tuple[Problem, ...]
    """Of transforms."""


def check(recipe: Recipe) -> CheckReport:
    """Read everything, open every picture, write nothing."""
    with tempfile.TemporaryDirectory(prefix="mcit-check-") as folder:
        found = collect(recipe, Path(folder))
        fatal = list(found.fatal)
        rows = found.rows
        if not fatal:
            try:
                result = _transformed(recipe, found)
                rows, found.warnings = result.rows, [*found.warnings, *result.warnings]
                fatal += _empty(rows)
            except DataError as error:
                fatal += error.problems
    return CheckReport(
        name=recipe.name,
        counts={split: len(rows[split]) for split in SPLITS},
        styles={split: _styles(rows[split]) for split in SPLITS},
        bad=tuple(found.bad),
        fatal=tuple(fatal),
        warnings=tuple(found.warnings),
        allowed=recipe.config.allow_bad,
    )


def folder_of(recipe: Recipe, *, digest: str, data_dir: Path | str | None = None) -> Path:
    """Where a recipe with this digest is built; with pictures outside, names of its folders only begin so."""
    base = Path(data_dir) if data_dir is not None else cache_dir() / "data"
    return base / f"{recipe.name.replace('/', '-')}-{digest[:12]}"


def build(recipe: Recipe, *, data_dir: Path | str | None = None, announce: Callable[[str], None] | None = None) -> Path:
    """Build the recipe's folder, or return the one that is there already with the same pictures.

    Raises DataError with every bad row when there are more than the recipe allows, or for a source that cannot be used;
    StateError for a damaged folder.
    """
    digest = recipe_digest(recipe)
    stem = folder_of(recipe, digest=digest, data_dir=data_dir)
    built = _built(recipe, stem)
    if built is not None:
        return built
    with explained(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(stem.parent / f".{stem.name}.lock"):
            built = _built(recipe, stem) or _moved(recipe, stem)
            if built is not None:
                return built
            for left in stem.parent.glob(f".{stem.name}.*.tmp"):  # of a killed build; we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            if announce:
                announce(f"building data set {recipe.name} in {stem.parent}")
            with _work_folder(stem) as work:
                return _finish(stem, work, _fill(recipe, digest, work))


def _built(recipe: Recipe, stem: Path) -> Path | None:
    """The whole folder with the image roots that the recipe has now and the pictures that are there now."""
    roots, _ = _roots(recipe, stem)
    here = [folder for folder, manifest in _whole(stem) if manifest["roots"] == roots]
    return next((folder for folder in here if pictures.unchanged(folder, roots)), None)


def _moved(recipe: Recipe, stem: Path) -> Path | None:
    """The same pictures at another place: what is known of them stays true, only the roots are new."""
    roots, _ = _roots(recipe, stem)
    for folder, manifest in _whole(stem):
        if manifest["roots"].keys() == roots.keys() and pictures.unchanged(folder, roots):
            with _work_folder(stem) as work:
                shutil.copytree(folder, work, dirs_exist_ok=True)
                write_sealed(work / "manifest.json", {**manifest, "roots": roots})
                return _finish(stem, work, {**manifest, "roots": roots})
    return None


def _whole(stem: Path) -> list[tuple[Path, JsonDict]]:
    """Finished folders of a recipe with their manifests, by name. Raises StateError for one that was edited."""
    names = [stem, *sorted(stem.parent.glob(f"{stem.name}-*"))]
    return [(folder, _unedited(folder)) for folder in names if (folder / "manifest.json").is_file()]


def _unedited(folder: Path) -> JsonDict:
    """The manifest, and the list of pictures as the manifest has it."""
    manifest = read_sealed(folder / "manifest.json", DataManifest)
    listed = manifest["files"].get(pictures.FILE)
    if listed is not None:
        path = folder / pictures.FILE
        if not path.is_file() or sha256_file(path) != listed["sha256"]:
            raise StateError("is missing or differs from the manifest", where=str(path), fix=DataManifest.fix)
    return manifest


@contextmanager
def _work_folder(stem: Path) -> Iterator[Path]:
    """A hidden folder beside `stem`, gone again if the block fails."""
    work = Path(tempfile.mkdtemp(dir=stem.parent, prefix=f".{stem.name}.", suffix=".tmp"))
    os.chmod(work, 0o755)
    try:
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _finish(stem: Path, work: Path, manifest: JsonDict) -> Path:
    """Give the folder its name: the recipe's own, or one that also says which pictures it means."""
    final = stem
    if pictures.outside(manifest["roots"]):
        final = stem.with_name(f"{stem.name}-{digest_of([manifest['digest'], manifest['roots']])[:12]}")
    rename_directory(work, final)
    return final


def _fill(recipe: Recipe, digest: str, work: Path) -> JsonDict:
    """Write everything into `work`; returns the manifest."""
    found = collect(recipe, work / "images")
    if found.fatal:
        raise DataError.of(found.fatal)
    if len(found.bad) > recipe.config.allow_bad:
        raise _too_many(recipe, found.bad)
    result = _transformed(recipe, found)
    empty = _empty(result.rows)
    if empty:
        raise DataError.of(empty)
    roots, numbers = _roots(recipe, work)
    for split in SPLITS:
        with RowWriter(work / f"{split}.jsonl") as out:
            for row in result.rows[split]:
                out.add(row, root=numbers[row.root])
            write_index(out.path, out.finish())
    if pictures.outside(roots):
        named = {(row.root, image) for split in SPLITS for row in result.rows[split] for image in row.images}
        kept = {key: found.pictures.get(key) for key in named | found.dropped}
        write_text(work / pictures.FILE, pictures.lines(kept, numbers, roots))
        digest = digest_of([digest, sha256_file(work / pictures.FILE)])
    manifest = _manifest(recipe, digest, found, result, roots)
    write_manifest(work, extra=manifest)
    return manifest


def _manifest(
    recipe: Recipe, digest: str, found: Collected, result: _Result, roots: dict[str, str | None]
) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "task": recipe.task,
        "digest": digest,
        "licence": recipe.config.licence,
        "recipe": recipe.text,
        "eval": recipe.config.eval.model_dump(mode="json"),
        "image": recipe.config.image.model_dump(mode="json"),
        "sources": found.sources,
        "roots": roots,
        "transforms": result.steps,
        "counts": {split: len(result.rows[split]) for split in SPLITS},
        "styles": {split: _styles(result.rows[split]) for split in SPLITS},
        "dropped": [{"where": p.where, "what": p.what} for p in found.bad],
        "warnings": [{"where": p.where, "what": p.what} for p in (*found.warnings, *result.warnings)],
    }


def _roots(recipe: Recipe, work: Path) -> tuple[dict[str, str | None], dict[str, str]]:
    """Image roots by their names in rows (None: in the folder itself), and the names by root.

    A source has the number of its place; pictures that its rows held themselves lie in the folder, under ``held-<number>``.
    """
    roots: dict[str, str | None] = {}
    names: dict[str, str] = {}
    for index, source in enumerate(recipe.sources):
        if isinstance(source, FileSource):
            root = recipe.file(source.images).resolve()
            roots[str(index)] = str(root)
            names.setdefault(str(root), str(index))
        inside = f"held-{index}" if isinstance(source, FileSource) else str(index)
        roots[inside] = None
        names[str(work / "images" / inside)] = inside
    return roots, names


def _transformed(recipe: Recipe, found: Collected) -> _Result:
    """Transforms on the train rows in order, the validation split taken off between; of other rows only a choice."""
    early = [(i, step) for i, step in enumerate(recipe.transforms) if not step.after_split]
    late = [(i, step) for i, step in enumerate(recipe.transforms) if step.after_split]
    steps: list[dict[str, Any]] = []
    warnings: list[Problem] = []
    train = _steps(recipe, found.rows["train"], early, steps, warnings)
    kept, held = _split(train, recipe.config.split)
    rows: dict[Split, list[Row]] = {
        "train": _steps(recipe, kept, late, steps, warnings),
        "validation": _chosen(recipe, found.rows["validation"]) + held,
        "test": _chosen(recipe, found.rows["test"]),
    }
    return _Result(rows, steps, tuple(warnings))


def _chosen(recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
    """What the transforms leave of rows that they must not change."""
    rows = list(rows)
    for transform in recipe.transforms:
        left = transform.elsewhere(rows)
        if not {id(row) for row in left} <= {id(row) for row in rows}:
            name = type(transform).__module__.rpartition(".")[2]
            raise DataError(
                "changes rows that are not for training", where=f"transforms: {name}", fix="correct its code"
            )
        rows = left
    return rows


def rows_for(recipe: Recipe, found: Collected, step: RowTransform) -> list[Row]:
    """The training rows as a step of the recipe that runs after the split is given them."""
    early = [(i, other) for i, other in enumerate(recipe.transforms) if not other.after_split]
    late = [(i, other) for i, other in enumerate(recipe.transforms) if other.after_split]
    kept, _ = _split(_steps(recipe, found.rows["train"], early, [], []), recipe.config.split)
    return _steps(recipe, kept, late[: [other for _, other in late].index(step)], [], [])


def _steps(
    recipe: Recipe,
    rows: Sequence[Row],
    steps: Sequence[tuple[int, RowTransform]],
    done: list[dict[str, Any]],
    warnings: list[Problem],
) -> list[Row]:
    """Run steps with their places in the recipe; `done` gets an account of each, `warnings` what they warn of."""
    rows = list(rows)
    for index, transform in steps:
        name = type(transform).__module__.rpartition(".")[2]
        before = len(rows)
        rows, notes, found = transform.run(rows, seed=seed_for(recipe.config.split.seed, "transform", index, name))
        _check_unique(rows, name)
        warnings += found
        done.append({"use": name, "rows_before": before, "rows_after": len(rows), **notes})
    return rows


def _split(rows: Sequence[Row], split: SplitConfig) -> tuple[list[Row], list[Row]]:
    """Whole groups go to validation until it is full; a group's turn depends on the seed and its own key alone."""
    target = round(split.validation * len(rows)) if split.validation < 1 else int(split.validation)
    if not target:
        return list(rows), []
    if target >= len(rows):
        raise DataError(
            f"validation takes {target} of {len(rows)} training rows", where="split.validation", fix="take fewer"
        )
    keys = [_group(row, split.by) for row in rows]
    sizes = Counter(keys)
    chosen: set[str] = set()
    count = 0
    for key in sorted(sizes, key=lambda key: sha256(f"{split.seed}/{key}".encode()).digest()):
        if count >= target:
            break
        chosen.add(key)
        count += sizes[key]
    kept = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    return kept, [row for row, key in zip(rows, keys, strict=True) if key in chosen]


def _group(row: Row, by: str) -> str:
    if by == "row":
        return row.id
    if by == "image":
        return canonical_json(row.images) if row.images else row.id
    key = by.removeprefix("meta.")
    if key not in row.meta:
        raise DataError(f"the row has no meta '{key}' to split by", where=row.where, fix="change split.by")
    return canonical_json(row.meta[key])


def _check_unique(rows: Sequence[Row], name: str) -> None:
    repeated = [identity for identity, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        what = f"transform {name} made several rows with id '{repeated[0]}'"
        raise DataError(what, where="transforms", fix="give new rows new ids")


def _empty(rows: dict[Split, list[Row]]) -> list[Problem]:
    if any(rows.values()):
        return []
    return [Problem("recipe", "no rows are left", "check sources and transforms")]


def _styles(rows: Sequence[Row]) -> dict[str, int]:
    return dict(sorted(Counter(row.style for row in rows).items()))


def _too_many(recipe: Recipe, bad: Sequence[Problem]) -> DataError:
    head = Problem(
        str(recipe.path),
        f"{len(bad)} bad row(s), the recipe allows {recipe.config.allow_bad}",
        f"correct the rows, or set allow_bad: {len(bad)} to drop them",
    )
    return DataError(head.what, where=head.where, fix=head.fix, problems=[head, *bad])
