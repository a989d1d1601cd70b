"""All rows of a recipe with everything that is wrong with them, in one pass that never stops at the first."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mcit.core.errors import DataError, Problem
from mcit.core.files import canonical_json
from mcit.core.hashes import sha256_files
from mcit.core.types import Row
from mcit.data.formats.element import Element
from mcit.data.formats.embedded import Embedded
from mcit.data.formats.files import checksum, elements
from mcit.data.formats.reader import RowReader
from mcit.data.images import open_image, resolve_below
from mcit.data.pictures import located
from mcit.data.recipe import SPLITS, FileSource, GeneratorSource, Recipe, Split, find_generator
from mcit.data.references import with_references
from mcit.data.rowjson import row_to_json

_LONG_ANSWER = 1_000
"""Characters, about 256 tokens."""
_ONE_SIDED = 0.6
_TOGETHER = 256
_SAID = 0.1
"""Share of questions with a cue below which a split is said to lack it."""
_OPTION = re.compile(r"\(?[A-Z][.):]")


@dataclass
class Collected:
    """Rows by split in the sources' order, and what was found."""

    rows: dict[Split, list[Row]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    bad: list[Problem] = field(default_factory=list)
    """One for each row that cannot be used."""
    fatal: list[Problem] = field(default_factory=list)
    """Whole sources that cannot be used."""
    warnings: list[Problem] = field(default_factory=list)
    sources: list[dict[str, object]] = field(default_factory=list)
    pictures: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """sha256 of every picture that a row names, by (root, path); None where there is no file to read."""
    dropped: set[tuple[str, str]] = field(default_factory=set)
    """Pictures of rows that cannot be used."""


def collect(recipe: Recipe, image_dir: Path) -> Collected:
    """Read or generate every source (pictures of generators below `image_dir`) and check each row and its pictures."""
    recipe.require_data()
    found = Collected()
    for index, source in enumerate(recipe.sources):
        try:
            loaded, digest = _load(recipe, source, image_dir / str(index))
        except DataError as error:
            found.fatal += error.problems
            continue
        loaded = [_storable(item) if isinstance(item, Row) else item for item in loaded]
        rows = [item for item in loaded if isinstance(item, Row)]
        found.bad += [item for item in loaded if isinstance(item, Problem)]
        found.rows[source.split] += rows
        name = source.path if isinstance(source, FileSource) else source.generator
        found.sources.append(
            {"kind": source.kind, "name": name, "split": source.split, "sha256": digest, "rows": len(rows)}
        )
    _check_images(found)
    _check_ids(found)
    _check_boxes(found)
    _check_overlap(found)
    found.warnings += _unexpected(found.rows, recipe.config.expect)
    found.warnings += [*_one_sided(found.rows["train"]), *_long_answers(found.rows), *_cue_differs(found.rows)]
    return found


def _load(recipe: Recipe, source: FileSource | GeneratorSource, image_dir: Path) -> tuple[list[Row | Problem], str]:
    if isinstance(source, GeneratorSource):
        image_dir.mkdir(parents=True, exist_ok=True)
        label = f"{source.generator}[{source.split}]"
        values = find_generator(source.generator)(source.split, source.rows, source.seed, image_dir)
        reader = RowReader(recipe.task, label, root=image_dir)
        return list(reader.read(Element(k, value) for k, value in enumerate(values, start=1))), ""
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
        kind=source.kind,
        style=source.style,
        placeholders=source.placeholders,
        fields=source.fields,
        system=source.system,
        ids=source.ids,
        embedded=Embedded(image_dir.with_name(f"held-{image_dir.name}")),
    )
    found: Iterable[Row | Problem] = reader.read(elements(path))
    if source.answers:
        found = with_references(found, recipe.source_file(source.answers), label=source.answers)
    if source.cue or source.cues:
        found = (with_cue(x, source.cues.get(x.answer, source.cue)) if isinstance(x, Row) else x for x in found)
    return list(found), digest


def _storable(row: Row) -> Row | Problem:
    """The row, or why it cannot be written: bytes that were no UTF-8, half a surrogate pair, a number that is none."""
    try:
        canonical_json(row_to_json(row)).encode()
    except (UnicodeEncodeError, ValueError) as error:
        bad = isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff"
        if bad:
            return Problem(
                row.where, "is not UTF-8 text", "save the file as UTF-8: rows of several encodings are mixed"
            )
        what = "a text or number cannot be stored (half a surrogate pair, or an infinite number)"
        return Problem(row.where, what, "correct it, or remove the row")
    return row


def with_cue(row: Row, cue: str) -> Row:
    """The row with `cue` as the last line of its last question, unless it holds it already.

    A cue that begins with a blank stays on the question's own line.
    """
    if cue.strip() in row.question:
        return row
    between = "" if cue.startswith(" ") else "\n"
    question = replace(row.turns[-2], text=f"{row.question.rstrip()}{between}{cue}")
    return replace(row, turns=(*row.turns[:-2], question, row.turns[-1]))


# ---- checks of rows -------------------------------------------------------------------------------------------------
def _drop(found: Collected, bad: dict[int, Problem]) -> None:
    """Remove rows (by identity) and remember why."""
    if bad:
        found.bad += bad.values()
        for split in SPLITS:
            gone = [row for row in found.rows[split] if id(row) in bad]
            found.dropped |= {(row.root, image) for row in gone for image in row.images}
            found.rows[split] = [row for row in found.rows[split] if id(row) not in bad]


def _check_images(found: Collected) -> None:
    """Open every picture once and note its checksum."""
    named: dict[tuple[str, str], Row] = {}
    for row in _all(found):
        for image in row.images:
            named.setdefault((row.root, image), row)
    problems: dict[tuple[str, str], Problem] = {}
    todo = iter(named.items())
    while part := list(itertools.islice(todo, _TOGETHER)):  # hashed while what was decoded is still in memory
        for (root, image), row in part:
            try:
                open_image(resolve_below(root, image, where=row.where), where=row.where)
            except DataError as error:
                problems[root, image] = error.problems[0]
        found.pictures.update(zip(dict(part), sha256_files(located(*key) for key, _ in part), strict=True))
    bad: dict[int, Problem] = {}
    for row in _all(found):
        first = next((problems[row.root, image] for image in row.images if (row.root, image) in problems), None)
        if first is not None:
            bad[id(row)] = Problem(row.where, first.what, first.fix)
    _drop(found, bad)


def _check_ids(found: Collected) -> None:
    """Ids must be unique in a split, over all its sources."""
    bad: dict[int, Problem] = {}
    for split in SPLITS:
        first: dict[str, Row] = {}
        for row in found.rows[split]:
            other = first.setdefault(row.id, row)
            if other is not row:
                what = f"id '{row.id}' is already used at {other.source}"
                bad[id(row)] = Problem(row.where, what, "give each row of a split its own id")
    _drop(found, bad)


def _check_boxes(found: Collected) -> None:
    """Boxes are [x1, y1, x2, y2] between 0 and 1."""
    bad: dict[int, Problem] = {}
    for row in _all(found):
        if row.style != "box":
            continue
        numbers = [float(n) for n in re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)", row.answer)]
        fits = len(numbers) == 4 and all(0 <= n <= 1 for n in numbers)
        if not fits or numbers[2] <= numbers[0] or numbers[3] <= numbers[1]:
            what = f"the box {row.answer!r} is not [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1"
            bad[id(row)] = Problem(row.where, what, "correct the answer, or remove the row")
    _drop(found, bad)


def _check_overlap(found: Collected) -> None:
    """A training row must not ask what a test row asks about the same pictures (compared by content)."""

    def asked(row: Row) -> Iterable[tuple[tuple[str, ...], str]]:
        images = tuple(str(found.pictures[row.root, image]) for image in row.images)
        for turn in row.turns:
            if turn.role == "user":
                yield images, " ".join(turn.text.replace("<image>", " ").split())

    tested = {key: row for row in found.rows["test"] for key in asked(row)}
    bad: dict[int, Problem] = {}
    for split in SPLITS[:2]:
        for row in found.rows[split]:
            twin = next((tested[key] for key in asked(row) if key in tested), None)
            if twin is not None:
                what = f"asks the same about the same picture as test row {twin.where}"
                bad[id(row)] = Problem(row.where, what, "remove it from one of the two splits")
    _drop(found, bad)


# ---- warnings -------------------------------------------------------------------------------------------------------
def _unexpected(rows: Mapping[Split, Sequence[Row]], expect: Mapping[Split, int]) -> list[Problem]:
    """Splits with another number of rows than the recipe says; zeros at its end are taken as rounded."""
    out = []
    for split, number in expect.items():
        zeros = len(str(number)) - len(str(number).rstrip("0"))
        if abs(len(rows[split]) - number) > 10**zeros // 2:
            what = f"has {len(rows[split])} rows, the recipe expects {number}"
            out.append(Problem(split, what, "check that the file is whole and of this release, or correct `expect`"))
    return out


def _one_sided(rows: Sequence[Row]) -> list[Problem]:
    out = []
    for style in ("yes_no", "letter"):
        answers = Counter(row.answer.lower() for row in rows if row.style == style)
        total = sum(answers.values())
        if total >= 10:
            answer, count = answers.most_common(1)[0]
            if count > _ONE_SIDED * total:
                what = f"{100 * count / total:.0f} % of the {style} answers are '{answer}'"
                out.append(Problem("train", what, "balance the answers, or compare scores with the constant answer"))
    return out


def _long_answers(rows: dict[Split, list[Row]]) -> list[Problem]:
    return [
        Problem(row.where, f"the answer has {len(row.answer)} characters in style '{row.style}'", "check the style")
        for split in SPLITS
        for row in rows[split]
        if row.style in ("letter", "word", "name", "yes_no", "phrase", "box") and len(row.answer) > _LONG_ANSWER
    ]


def _cue_differs(rows: dict[Split, list[Row]]) -> list[Problem]:
    """The last line of most questions of one split says how to answer; those of the other must say the same somewhere."""
    if not rows["train"] or not rows["test"]:
        return []
    for split, other in (("train", "test"), ("test", "train")):
        cue = _cue(rows[split])  # type: ignore[index]
        share = sum(cue in row.question for row in rows[other]) / len(rows[other])  # type: ignore[index]
        if cue and share < _SAID:
            what = f"most questions of {split} end with {cue!r}, and {100 * share:.0f} % of those of {other} hold that"
            return [Problem(other, what, "use one wording (`cue:` of a source): another cue alone costs many points")]
    return []


def _cue(rows: Sequence[Row]) -> str:
    lines = [row.question.strip().split("\n") for row in rows]
    last = Counter(line[-1].strip() for line in lines if len(line) > 1 and not _OPTION.match(line[-1].strip()))
    if not last:
        return ""
    cue, count = last.most_common(1)[0]
    return cue if count * 2 > len(rows) else ""


def _all(found: Collected) -> Iterable[Row]:
    for split in SPLITS:
        yield from found.rows[split]
