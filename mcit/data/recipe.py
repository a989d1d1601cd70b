"""A data recipe: YAML that says where rows come from, what is done to them and how they are scored.

Paths in a recipe are relative to the recipe's own folder.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

from pydantic import ValidationInfo, field_validator, model_validator

from mcit.core.config import Config, Field, load_yaml, parse, suggestion
from mcit.core.errors import ConfigError, DataError, Problem
from mcit.core.files import digest_of, sha256_file
from mcit.core.lookup import anchored, class_of, known, missing, outside, part_of, source_digest
from mcit.core.paths import data_dir, find_shipped, shipped, where_looked
from mcit.data.formats.files import checksum
from mcit.data.formats.safe_eraser import Part
from mcit.data.formats.turns import LAYOUTS, Kind
from mcit.data.transforms.base import RowTransform

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Generator = Callable[[str, int, int, Path], Iterator[dict[str, Any]]]

_SOURCES = "mcit.data.sources"
_VERSION = 3
"""Part of every digest: raised when the layout or meaning of a built folder changes."""


class FileSource(Config):
    """Rows of a JSON, JSONL, Parquet or Arrow file, or of a folder of tables."""

    kind: Kind | Literal["safe_eraser"]
    """Layout of the turns: LLaVA's and CoIN's, ShareGPT's, OpenAI's messages; or SafeEraser's records."""
    part: Part | None = None
    """``kind: safe_eraser``: which rows of its records."""
    path: str
    """File below the recipe's folder, or below `data`."""
    images: str = "."
    """Folder that image paths of the rows start from."""
    split: Split = "train"
    """Split that the rows go to."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Expected checksum of the file; another one is refused."""
    style: str = ""
    """Answer style of rows that name none."""
    placeholders: Literal["keep", "front"] = "keep"
    """``front`` moves ``<image>`` to the front of its turn, as the LLaVA trainer does."""
    fields: tuple[str, str] | None = None
    """Keys of question and answer in files that hold no turns (TRACE: ``[prompt, answer]``)."""
    answers: str = ""
    """File of reference answers by question id (TextVQA's annotations), in place of the rows' own; see `references`."""
    cue: str = ""
    """Put after the last question of every row that does not hold it yet: what a benchmark's own harness adds.

    On a line of its own, or on the question's last line if it begins with a blank.
    """
    cues: dict[str, str] = {}
    """The cue of rows with a certain answer, in place of `cue`."""
    ids: Literal["keep", "number"] = "keep"
    """``number`` puts the row's number behind each id, for files in which ids repeat."""
    system: Literal["keep", "front"] = "keep"
    """``front`` writes a system turn above the first question, for models whose template has no place for it."""

    @model_validator(mode="after")
    def _part_of_records(self) -> Self:
        if (self.part is None) == (self.kind == "safe_eraser"):
            raise ValueError("part: forget, decouple or retain goes with kind: safe_eraser, which needs it")
        return self

    @field_validator("path", "answers")
    @classmethod
    def _below(cls, value: str) -> str:
        if value.startswith("/") or ".." in Path(value).parts or "\0" in value:
            raise ValueError("give a path relative to the recipe's folder (or `data:`), without '..'")
        return value


class GeneratorSource(Config):
    """Rows made by a function of mcit/data/sources."""

    kind: Literal["generator"]
    """Rows are made, not read."""
    generator: str
    """Name in ``GENERATORS`` of a file in mcit/data/sources."""
    split: Split = "train"
    """Split that the rows go to."""
    rows: int = Field(ge=1)
    """How many rows are made."""
    seed: int = 0
    """Seed of the generator."""


class SplitConfig(Config):
    """Rows of the train sources that become the validation split."""

    validation: float = Field(0, ge=0)
    """Below 1 a share, from 1 on a number of rows; 0 is none."""
    by: str = "row"
    """``image`` or ``meta.key`` keeps rows together that share it."""
    seed: int = 0
    """Seed of the choice."""

    @field_validator("validation")
    @classmethod
    def _whole_rows(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("use a share below 1 or a whole number of rows")
        return value

    @field_validator("by")
    @classmethod
    def _known_grouping(cls, value: str) -> str:
        if value not in ("row", "image") and not (value.startswith("meta.") and len(value) > len("meta.")):
            raise ValueError("use row, image or meta.<key>")
        return value


class ScoringConfig(Config):
    """How answers to the test split are scored."""

    scorer: str = "exact"
    """File in mcit/evals/scorers."""
    style: str = ""
    """Form of a right answer, for rows that name none: letter, word, name, phrase, yes_no, box or text."""
    max_new_tokens: int = Field(16, ge=1)
    """Longest answer in tokens."""


class ImageConfig(Config):
    """What is done to every picture before the model's processor."""

    pad: bool = False
    """Pad to a square before the model's processor."""


class RecipeConfig(Config):
    """What a recipe file may say."""

    name: str
    """Name of the data set: part of its folder's name."""
    task: str
    """Task of the rows: a column of the score matrix."""
    licence: str = ""
    """Licence of the rows, kept in the manifest."""
    data: str = ""
    """Folder below ``$MCIT_DATA`` that source paths start from; the recipe's own folder when not given."""
    obtain: str = ""
    """How to get that folder, for the message when it is absent."""
    sources: list[dict[str, Any]] = Field(min_length=1)
    """Files and generators that rows come from."""
    transforms: list[dict[str, Any]] = []
    """Steps on the training rows, ``{use: NAME, …}`` each, in order."""
    split: SplitConfig = SplitConfig()
    """Training rows that become the validation split."""
    eval: ScoringConfig = ScoringConfig()
    """How answers to the test split are scored."""
    image: ImageConfig = ImageConfig()
    """What is done to every picture."""
    expect: dict[Split, int] = {}
    """Rows that each split should have; another number is a warning. Zeros at the end are taken as rounded."""
    allow_bad: int = Field(0, ge=0)
    """Bad rows that may be dropped; one more refuses the data set."""

    @field_validator("name", "task", "data")
    @classmethod
    def _plain(cls, value: str, info: ValidationInfo) -> str:
        if info.field_name == "data" and not value:
            return value
        slash = "" if info.field_name == "task" else "/"  # a task is one folder below evals/
        if (
            not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._{slash}-]{{0,99}}", value)
            or ".." in value
            or value.endswith("/")
        ):
            raise ValueError(
                "use at most 100 letters, digits, '.', '_' and '-'" + (", with '/' between" if slash else "")
            )
        return value


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe file."""

    path: Path
    text: str
    config: RecipeConfig
    sources: tuple[FileSource | GeneratorSource, ...]
    transforms: tuple[RowTransform, ...]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.config.name

    @property
    def task(self) -> str:
        """The task its rows belong to."""
        return self.config.task

    @property
    def root(self) -> Path:
        """Folder that paths in the recipe start from."""
        return data_dir() / self.config.data if self.config.data else self.path.parent

    def followed_by(self, transform: str, **settings: Any) -> Recipe:
        """The recipe with one more transform at its end. Raises ConfigError for settings that it does not take."""
        raw, problems = {"use": transform, **settings}, list[Problem]()
        made = _transform(raw, self.path, f"{self.path}: {transform}", problems)
        if made is None or problems:
            raise ConfigError.of(problems)
        config = self.config.model_copy(update={"transforms": [*self.config.transforms, raw]})
        return replace(self, config=config, transforms=(*self.transforms, made))

    def file(self, relative: str) -> Path:
        """A path written in the recipe."""
        return self.root / relative

    def source_file(self, relative: str) -> Path:
        """A file of rows, or a folder of tables. Raises DataError for a link out of the recipe's folder, or another thing."""
        path = self.file(relative)
        try:
            full = path.resolve()
            inside, whole = full.is_relative_to(self.root.resolve()), path.is_file() or path.is_dir()
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"cannot be followed ({error})", where=str(path), fix="check the path in the recipe"
            ) from None
        if path.exists() and not (inside and whole):
            what = "is no regular file" if inside else f"is a link out of {self.root}"
            fix = "copy the file there; `data:` and MCIT_DATA name another folder"
            raise DataError(what, where=str(path), fix=fix)
        return path

    def require_data(self) -> None:
        """Raises DataError when the recipe's data folder is absent, with how to get it."""
        if self.config.data and not self.root.is_dir():
            how = f"{self.config.obtain}; then set" if self.config.obtain else "set"
            raise DataError(
                "the data folder is absent",
                where=str(self.root),
                fix=f"{how} MCIT_DATA to the folder that holds '{self.config.data}'",
            )


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one. Raises ConfigError with the nearest known name."""
    found = find_shipped("data_recipes", name)
    if found is None:
        if Path(name).is_dir():
            raise ConfigError(f"'{name}' is a folder, not a recipe", where="recipe", fix="name the YAML file in it")
        if Path(name).suffix in (".yaml", ".yml"):
            raise ConfigError(f"there is no recipe file '{name}'", where="recipe", fix=where_looked(name))
        folder = shipped("data_recipes")
        names = [str(p.relative_to(folder).with_suffix("")) for p in sorted(folder.rglob("*.yaml"))]
        raise ConfigError(f"there is no data recipe '{name}'", where="recipe", fix=suggestion(name, names))
    return found


def load_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe file. Raises ConfigError with all its problems together."""
    path = Path(path)
    data = anchored(load_yaml(path), path.parent)
    config, problems = parse(RecipeConfig, data, where="")
    problems = [Problem(f"{path}: {p.where}" if p.where else str(path), p.what, p.fix) for p in problems]
    sources = [_source(raw, f"{path}: sources[{i}]", problems) for i, raw in _entries(data, "sources")]
    transforms = [
        _transform(raw, path, f"{path}: transforms[{i}]", problems) for i, raw in _entries(data, "transforms")
    ]
    problems += _misplaced(transforms, str(path))
    if problems or config is None:
        raise ConfigError.of(problems)
    return Recipe(
        path=path,
        text=path.read_text(encoding="utf-8-sig"),
        config=config,
        sources=tuple(source for source in sources if source is not None),
        transforms=tuple(transform for transform in transforms if transform is not None),
    )


def recipe_digest(recipe: Recipe) -> str:
    """Hex sha256 of what the rows depend on: settings, source files, and the code of generators and transforms.

    Raises DataError for an absent data folder or a source file that cannot be read.
    """
    recipe.require_data()
    files = [
        checksum(recipe.source_file(source.path))
        if isinstance(source, FileSource)
        else generator_code(source.generator)
        for source in recipe.sources
    ]
    files += [
        checksum(recipe.source_file(s.answers)) for s in recipe.sources if isinstance(s, FileSource) and s.answers
    ]
    transforms = [
        {
            "code": sha256_file(inspect.getfile(type(transform))),
            "settings": transform.config.model_dump(mode="json"),
            "files": [checksum(path) for path in transform.files()],
            **transform.identity(),
        }
        for transform in recipe.transforms
    ]
    # allow_bad and licence do not change the rows, but they are said in the manifest, and a folder has one manifest.
    settings = recipe.config.model_dump(mode="json", exclude={"obtain"})
    content = {"version": _VERSION, "config": settings}
    return digest_of({**content, "sources": files, "transforms": transforms})


def find_generator(name: str) -> Generator:
    """The function that ``GENERATORS`` of a module in mcit/data/sources lists under `name`, or one from elsewhere.

    Raises ConfigError.
    """
    if outside(name):
        return part_of("data.sources", name)
    return _generator_module(name).GENERATORS[name]


def generator_code(name: str) -> str:
    """Digest of a generator's module, of its neighbours that it imports, and of its ``VERSION`` if it states one.

    ``VERSION`` stands for what the code does not show: pinned packages, files it reads.
    """
    if outside(name):
        return source_digest(part_of("data.sources", name))
    module = _generator_module(name)
    files = _with_neighbours(module.__name__.rpartition(".")[2], {})
    return digest_of([files, str(getattr(module, "VERSION", ""))])


def _with_neighbours(name: str, done: dict[str, str]) -> dict[str, str]:
    """Checksums by module of a file in mcit/data/sources and of those there that it imports, directly or not."""
    path = Path(inspect.getfile(part_of("data.sources", name)))
    done[name] = sha256_file(path)
    for found in _imported(path, done[name]):
        if found in known("data.sources") and found not in done:
            _with_neighbours(found, done)
    return done


@functools.lru_cache(maxsize=64)
def _imported(path: Path, digest: str) -> tuple[str, ...]:
    """Names of mcit/data/sources that a file of this digest imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_SOURCES):
            inner = (node.module or "").removeprefix(_SOURCES).lstrip(".")
            names += [inner] if inner else [alias.name for alias in node.names]
    return tuple(names)


def _generator_module(name: str) -> ModuleType:
    modules = [part_of("data.sources", found) for found in known("data.sources")]
    for module in modules:
        if name in getattr(module, "GENERATORS", {}):
            return module
    names = [key for module in modules for key in getattr(module, "GENERATORS", {})]
    raise ConfigError(f"there is no generator '{name}'", where="mcit/data/sources", fix=suggestion(name, names))


def _source(raw: dict[str, Any], where: str, problems: list[Problem]) -> FileSource | GeneratorSource | None:
    kinds: dict[str, type[FileSource] | type[GeneratorSource]] = {
        **dict.fromkeys((*LAYOUTS, "safe_eraser"), FileSource),
        "generator": GeneratorSource,
    }
    kind = raw.get("kind")
    if kind not in kinds:
        problems.append(Problem(f"{where}.kind", f"unknown kind {kind!r}", suggestion(str(kind), kinds)))
        return None
    source, found = parse(kinds[kind], raw, where=where)
    problems += found
    if isinstance(source, GeneratorSource):
        try:
            find_generator(source.generator)
        except ConfigError as error:
            problems.append(Problem(f"{where}.generator", error.what, error.fix))
    return source


def _transform(raw: dict[str, Any], path: Path, where: str, problems: list[Problem]) -> RowTransform | None:
    name = raw.get("use")
    if not isinstance(name, str):
        fix = "name a transform: " + ", ".join(known("data.transforms"))
        problems.append(Problem(f"{where}.use", "is required", fix))
        return None
    problem = missing("data.transforms", name, where=f"{where}.use")
    if problem:
        problems.append(problem)
        return None
    kind = class_of("data.transforms", name, base=RowTransform)
    config, found = parse(kind.Config, {k: v for k, v in raw.items() if k != "use"}, where=where)
    problems += found
    return kind(config, folder=path.parent) if config is not None else None


def _misplaced(transforms: Sequence[RowTransform | None], where: str) -> list[Problem]:
    """Steps that would run before the validation split but are listed behind one that runs after it."""
    found = [(i, step) for i, step in enumerate(transforms) if step is not None]
    late = next((i for i, step in found if step.after_split), len(transforms))
    what = "runs before the validation split and stands behind a step that runs after it"
    return [
        Problem(f"{where}: transforms[{i}]", what, "move it to the front")
        for i, step in found
        if i > late and not step.after_split
    ]


def _entries(data: Any, key: str) -> list[tuple[int, dict[str, Any]]]:
    """The mappings of a list with their places; what is malformed there has its own problem already."""
    value = data.get(key) if isinstance(data, dict) else None
    return [(i, item) for i, item in enumerate(value) if isinstance(item, dict)] if isinstance(value, list) else []
