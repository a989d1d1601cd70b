"""All rows of a recipe with everything that is wrong with them, in one pass that never stops at the first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mcit.core.errors import DataError, Problem
from mcit.core.types import Row
from mcit.data.checks import check_ids, check_overlap, check_pictures
from mcit.data.formats.element import Element
from mcit.data.formats.embedded import Embedded
from mcit.data.formats.files import checksum, elements
from mcit.data.formats.reader import RowReader
from mcit.data.formats.safe_eraser import rows_of
from mcit.data.gathered import Gathered
from mcit.data.pictures import PictureList
from mcit.data.recipe import SPLITS, FileSource, GeneratorSource, Recipe, Split, find_generator
from mcit.data.references import with_references
from mcit.data.rowfile import StoredRows
from mcit.data.tally import cue_differs, long_answers, one_sided, unexpected


@dataclass
class Collected:
    """Rows by split in the sources' order, and what was found."""

    gathered: dict[Split, Gathered]
    pictures: PictureList
    bad: list[Problem] = field(default_factory=list)
    """One for each row that cannot be used."""
    summary: list[Problem] = field(default_factory=list)
    """What many of these have in common."""
    fatal: list[Problem] = field(default_factory=list)
    """Whole sources that cannot be used."""
    warnings: list[Problem] = field(default_factory=list)
    sources: list[dict[str, object]] = field(default_factory=list)

    @property
    def rows(self) -> dict[Split, StoredRows]:
        """The rows that can be used."""
        return {split: part.rows for split, part in self.gathered.items()}


def collect(recipe: Recipe, work: Path) -> Collected:
    """Read or generate every source and check each row and its pictures, in memory that does not grow with them.

    Below `work` come ``rows/``, for as long as the rows are read, and ``images/``: pictures of generators and of rows that
    hold them.
    """
    recipe.require_data()
    _, names = image_roots(recipe, work)
    parts = {split: Gathered(work / "rows" / f"{split}.jsonl", names) for split in SPLITS}
    found = Collected(parts, PictureList(work / "rows" / "pictures.jsonl", names))
    for index, source in enumerate(recipe.sources):
        name = source.path if isinstance(source, FileSource) else source.generator
        before = len(parts[source.split])
        try:
            items, digest = _load(recipe, source, work / "images" / str(index))
            for item in items:
                problem = item if isinstance(item, Problem) else _add(parts[source.split], item)
                if problem is not None:
                    found.bad.append(problem)
        except DataError as error:
            found.fatal += error.problems
            continue
        count = len(parts[source.split]) - before
        found.sources.append(
            {"kind": source.kind, "name": name, "split": source.split, "sha256": digest, "rows": count}
        )
    for part in parts.values():
        part.close()
    found.bad += check_pictures(parts, found.pictures, found.summary)
    found.bad += check_ids(parts)
    found.bad += check_overlap([parts["train"], parts["validation"]], parts["test"], found.summary)
    found.warnings += _warnings(parts, recipe)
    return found


def image_roots(recipe: Recipe, work: Path) -> tuple[dict[str, str | None], dict[str, str]]:
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


def _add(part: Gathered, row: Row) -> Problem | None:
    """Add a row to its split, or say why it cannot be used."""
    problem = _box_problem(row)
    if problem is not None:
        return problem
    try:
        part.add(row)
    except ValueError as error:
        if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
            return Problem(
                row.where, "is not UTF-8 text", "save the file as UTF-8: rows of several encodings are mixed"
            )
        what = "a text or number cannot be stored (half a surrogate pair, or an infinite number)"
        return Problem(row.where, what, "correct it, or remove the row")
    return None


def _warnings(parts: Mapping[Split, Gathered], recipe: Recipe) -> Iterator[Problem]:
    tallies = {split: part.tally for split, part in parts.items()}
    for split, number in recipe.config.expect.items():
        yield from unexpected(split, tallies[split].rows, number)
    yield from one_sided(tallies["train"])
    for tally in tallies.values():
        yield from long_answers(tally)
    yield from cue_differs(tallies["train"], tallies["test"], {split: part.rows for split, part in parts.items()})


def _load(recipe: Recipe, source: FileSource | GeneratorSource, image_dir: Path) -> tuple[Iterable[Row | Problem], str]:
    if isinstance(source, GeneratorSource):
        image_dir.mkdir(parents=True, exist_ok=True)
        label = f"{source.generator}[{source.split}]"
        values = find_generator(source.generator)(source.split, source.rows, source.seed, image_dir)
        reader = RowReader(recipe.task, label, root=image_dir)
        return reader.read(Element(k, value) for k, value in enumerate(values, start=1)), ""
    path = recipe.source_file(source.path)
    digest = checksum(path)
    if source.sha256 is not None and digest != source.sha256:
        raise DataError(
            f"sha256 is {digest}, the recipe expects {source.sha256}",
            where=str(path),
            fix="fetch the file again, or change the recipe if the new content is meant",
        )
    reader = RowReader(
        task=recipe.task,
        label=source.path,
        root=recipe.file(source.images).resolve(),
        kind="llava" if source.kind == "safe_eraser" else source.kind,
        style=source.style,
        placeholders=source.placeholders,
        fields=source.fields,
        system=source.system,
        ids=source.ids,
        embedded=Embedded(image_dir.with_name(f"held-{image_dir.name}")),
    )
    read = elements(path)
    found: Iterable[Row | Problem] = reader.read(rows_of(read, source.part) if source.part else read)
    if source.answers:
        found = with_references(found, recipe.source_file(source.answers), label=source.answers)
    if source.cue or source.cues:
        found = (with_cue(x, source.cues.get(x.answer, source.cue)) if isinstance(x, Row) else x for x in found)
    return found, digest


def with_cue(row: Row, cue: str) -> Row:
    """The row with `cue` as the last line of its last question, unless it holds it already.

    A cue that begins with a blank stays on the question's own line.
    """
    if cue.strip() in row.question:
        return row
    between = "" if cue.startswith(" ") else "\n"
    question = replace(row.turns[-2], text=f"{row.question.rstrip()}{between}{cue}")
    return replace(row, turns=(*row.turns[:-2], question, row.turns[-1]))


def _box_problem(row: Row) -> Problem | None:
    """Boxes are [x1, y1, x2, y2] between 0 and 1."""
    if row.style != "box":
        return None
    numbers = [float(n) for n in re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)", row.answer)]
    fits = len(numbers) == 4 and all(0 <= n <= 1 for n in numbers)
    if fits and numbers[0] < numbers[2] and numbers[1] < numbers[3]:
        return None
    what = f"the box {row.answer!r} is not [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1"
    return Problem(row.where, what, "correct the answer, or remove the row")
