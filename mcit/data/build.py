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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mcit.core.errors import DataError, Problem, StateError
from mcit.core.files import (
    canonical_json,
    digest_of,
    explained,
    rename_directory,
    sha256_file,
)
from mcit.core.paths import cache_dir
from mcit.core.records import DataManifest
from mcit.core.seeds import seed_for
from mcit.core.stored import read_sealed, write_manifest, write_sealed
from mcit.core.types import JsonDict, Row
from mcit.data import pictures
from mcit.data.collect import Collected, collect, image_roots
from mcit.data.gathered import Gathered, picture_key
from mcit.data.recipe import SPLITS, Recipe, Split, SplitConfig, recipe_digest
from mcit.data.rowfile import RowWriter, StoredRows, write_index
from mcit.data.rowset import joined, parts_of, pick
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
    summary: tuple[Problem, ...]
    """What many of these have in common."""
    sources: tuple[dict[str, object], ...]
    """Kind, name, split, sha256 and rows of each source that could be read."""
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
    rows: dict[Split, Sequence[Row]]
    steps: list[dict[str, Any]]
    """What each transform made of how many rows."""
    warnings: tuple[Problem, ...]
    """Of transforms."""


def check(recipe: Recipe) -> CheckReport:
    """Read everything, open every picture, leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="mcit-check-") as folder:
        found = collect(recipe, Path(folder))
        fatal = list(found.fatal)
        rows: Mapping[Split, Sequence[Row]] = found.rows
        if not fatal:
            try:
                result = _transformed(recipe, found)
                rows, found.warnings = result.rows, [*found.warnings, *result.warnings]
                fatal += _empty(rows) if len(found.bad) <= recipe.config.allow_bad else []
            except DataError as error:
                fatal += error.problems
        return CheckReport(
            name=recipe.name,
            counts={split: len(rows[split]) for split in SPLITS},
            styles={split: _styles(rows[split], found) for split in SPLITS},
            bad=tuple(found.bad),
            summary=tuple(found.summary),
            sources=tuple(found.sources),
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
            _require_free(stem)
            for left in stem.parent.glob(f".{stem.name}.*.tmp"):  # of a killed build; we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            if announce:
                announce(f"building data set {recipe.name} in {stem.parent}")
            with _work_folder(stem) as work:
                return _finish(stem, work, _fill(recipe, digest, work))


def _built(recipe: Recipe, stem: Path) -> Path | None:
    """The whole folder with the image roots that the recipe has now and the pictures that are there now."""
    roots, _ = image_roots(recipe, stem)
    here = [folder for folder, manifest in _whole(stem) if manifest["roots"] == roots]
    return next((folder for folder in here if pictures.unchanged(folder, roots)), None)


def _moved(recipe: Recipe, stem: Path) -> Path | None:
    """The same pictures at another place: what is known of them stays true, only the roots are new."""
    roots, _ = image_roots(recipe, stem)
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


def _require_free(folder: Path) -> None:
    """Raise StateError for a folder that holds something: it was no data set, or it would have been used."""
    if folder.is_dir() and any(folder.iterdir()):
        what = "holds files and no manifest.json, so it is no data set, or a damaged one"
        raise StateError(what, where=str(folder), fix=DataManifest.fix)


def _finish(stem: Path, work: Path, manifest: JsonDict) -> Path:
    """Give the folder its name: the recipe's own, or one that also says which pictures it means."""
    final = stem
    if pictures.outside(manifest["roots"]):
        final = stem.with_name(f"{stem.name}-{digest_of([manifest['digest'], manifest['roots']])[:12]}")
    _require_free(final)
    rename_directory(work, final)
    return final


def _fill(recipe: Recipe, digest: str, work: Path) -> JsonDict:
    """Write everything into `work`; returns the manifest."""
    found = collect(recipe, work)
    if found.fatal:
        raise DataError.of(found.fatal)
    if len(found.bad) > recipe.config.allow_bad:
        raise _too_many(recipe, found)
    result = _transformed(recipe, found)
    empty = _empty(result.rows)
    if empty:
        raise DataError.of(empty)
    roots, names = image_roots(recipe, work)
    for split in SPLITS:
        _store(result.rows[split], work / f"{split}.jsonl", names)
    if pictures.outside(roots):
        found.pictures.write(work / pictures.FILE, _pictures_of(result, found), roots)
        digest = digest_of([digest, sha256_file(work / pictures.FILE)])
    manifest = _manifest(recipe, digest, found, result, roots)
    shutil.rmtree(work / "rows")
    write_manifest(work, extra=manifest)
    return manifest


def _store(rows: Sequence[Row], path: Path, names: Mapping[str, str]) -> None:
    """Write rows: those that were stored before as they stand."""
    with RowWriter(path) as out:
        for part in parts_of(rows):
            if isinstance(part, StoredRows):
                for line, characters, images in zip(part.lines(), *part.sizes, strict=True):
                    out.put(line, characters, images)
            else:
                for row in part:
                    out.add(row, root=names[row.root])
        write_index(path, out.finish())


def _pictures_of(result: _Result, found: Collected) -> NDArray[np.int64]:
    """Keys of the pictures that belong to the data set: those of its rows and of the rows that were dropped."""
    used = [part.pictures[~part.alive[part.picture_rows]] for part in found.gathered.values()]
    for rows in result.rows.values():
        for part in parts_of(rows):
            if isinstance(part, StoredRows):
                gathered = _gathered(part, found)
                chosen = np.zeros(len(gathered), bool)
                chosen[gathered.places(part)] = True
                used.append(gathered.pictures[chosen[gathered.picture_rows]])
            else:
                used.append(np.array([picture_key(row, image) for row in part for image in row.images], np.int64))
    return np.concatenate(used)


def _gathered(part: StoredRows, found: Collected) -> Gathered:
    """What the rows are a choice of."""
    return next(gathered for gathered in found.gathered.values() if gathered.all.path == part.path)


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
        "styles": {split: _styles(result.rows[split], found) for split in SPLITS},
        "dropped": [{"where": p.where, "what": p.what} for p in found.bad],
        "warnings": [{"where": p.where, "what": p.what} for p in (*found.warnings, *result.warnings)],
    }


def _transformed(recipe: Recipe, found: Collected) -> _Result:
    """Transforms on the train rows in order, the validation split taken off between; of other rows only a choice."""
    early = [(i, step) for i, step in enumerate(recipe.transforms) if not step.after_split]
    late = [(i, step) for i, step in enumerate(recipe.transforms) if step.after_split]
    steps: list[dict[str, Any]] = []
    warnings: list[Problem] = []
    train = _steps(recipe, found.rows["train"], early, steps, warnings)
    kept, held = _split(train, recipe.config.split)
    rows: dict[Split, Sequence[Row]] = {
        "train": _steps(recipe, kept, late, steps, warnings),
        "validation": joined([_chosen(recipe, found.rows["validation"]), held]),
        "test": _chosen(recipe, found.rows["test"]),
    }
    return _Result(rows, steps, tuple(warnings))


def _chosen(recipe: Recipe, rows: Sequence[Row]) -> Sequence[Row]:
    """What the transforms leave of rows that they must not change."""
    for transform in recipe.transforms:
        left = transform.elsewhere(rows)
        if left is not rows and not _is_choice(left, rows):
            name = type(transform).__module__.rpartition(".")[2]
            raise DataError(
                "changes rows that are not for training", where=f"transforms: {name}", fix="correct its code"
            )
        rows = left
    return rows


def _is_choice(left: Sequence[Row], rows: Sequence[Row]) -> bool:
    """Whether the one are some of the other, in their order."""
    remaining = iter(rows)
    return all(any(row == other for other in remaining) for row in left)


def rows_for(recipe: Recipe, found: Collected, step: RowTransform) -> Sequence[Row]:
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
) -> Sequence[Row]:
    """Run steps with their places in the recipe; `done` gets an account of each, `warnings` what they warn of."""
    for index, transform in steps:
        name = type(transform).__module__.rpartition(".")[2]
        before = len(rows)
        rows, notes, found = transform.run(rows, seed=seed_for(recipe.config.split.seed, "transform", index, name))
        _check_unique(rows, name)
        warnings += found
        done.append({"use": name, "rows_before": before, "rows_after": len(rows), **notes})
    return rows


def _split(rows: Sequence[Row], split: SplitConfig) -> tuple[Sequence[Row], Sequence[Row]]:
    """Whole groups go to validation until it is full; a group's turn depends on the seed and its own key alone."""
    target = round(split.validation * len(rows)) if split.validation < 1 else int(split.validation)
    if not target:
        return rows, []
    if target >= len(rows):
        raise DataError(
            f"validation takes {target} of {len(rows)} training rows", where="split.validation", fix="take fewer"
        )
    turns = b"".join(sha256(f"{split.seed}/{_group(row, split.by)}".encode()).digest()[:16] for row in rows)
    groups, group_of, sizes = np.unique(np.frombuffer(turns, "S16"), return_inverse=True, return_counts=True)
    taken = np.cumsum(sizes) - sizes < target  # in the order of their turns, which `unique` sorted them by
    held = taken[group_of]
    return pick(rows, np.flatnonzero(~held)), pick(rows, np.flatnonzero(held))


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
    hashes = np.fromiter((hash(row.id) for row in rows), np.int64, len(rows))
    found, counts = np.unique(hashes, return_counts=True)
    places = np.flatnonzero(np.isin(hashes, found[counts > 1])).tolist()
    repeated = [identity for identity, count in Counter(rows[place].id for place in places).items() if count > 1]
    if repeated:
        what = f"transform {name} made several rows with id '{repeated[0]}'"
        raise DataError(what, where="transforms", fix="give new rows new ids")


def _empty(rows: Mapping[Split, Sequence[Row]]) -> list[Problem]:
    if any(len(part) for part in rows.values()):
        return []
    return [Problem("recipe", "no rows are left", "check sources and transforms")]


def _styles(rows: Sequence[Row], found: Collected) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in parts_of(rows):
        if isinstance(part, StoredRows):
            counts += _gathered(part, found).styles(part)
        else:
            counts += Counter(row.style for row in part)
    return dict(sorted(counts.items()))


def _too_many(recipe: Recipe, found: Collected) -> DataError:
    bad = found.bad
    head = Problem(
        str(recipe.path),
        f"{len(bad)} bad row(s), the recipe allows {recipe.config.allow_bad}",
        f"correct the rows, or set allow_bad: {len(bad)} to drop them",
    )
    return DataError(head.what, where=head.where, fix=head.fix, problems=[head, *found.summary, *bad])
