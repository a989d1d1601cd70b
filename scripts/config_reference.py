"""Write docs/config.md and docs/config.schema.json from the config classes; the texts are the docstrings of their keys.

``python scripts/config_reference.py`` writes both, ``--check`` says whether they are as they would be written. A key without
a docstring is an error that names it.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mcit.core import schema
from mcit.core.config import Config
from mcit.core.lookup import class_of, known
from mcit.data import recipe
from mcit.data.transforms.base import RowTransform
from mcit.methods.base import Method

ROOT = Path(__file__).parents[1]
PAGE, SCHEMA = ROOT / "docs" / "config.md", ROOT / "docs" / "config.schema.json"
_LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
Part = tuple[str, str, type[BaseModel], tuple[str, ...]]
"""Heading, text below it, class, and keys that are written beside it."""


def parts() -> Iterator[Part]:
    """Every class whose keys a file may hold, in the order of the page."""
    run = [
        ("", schema.RunConfig),
        ("base", schema.BaseConfig),
        ("engine", schema.EngineConfig),
        ("stages[]", schema.StageConfig),
        ("stages[].adapter", schema.AdapterConfig),
        ("stages[].optim", schema.OptimConfig),
        ("eval", schema.EvalConfig),
        ("eval.vllm", schema.VllmConfig),
        ("checkpoint", schema.CheckpointConfig),
    ]
    for key, cls in run:
        yield f"## Run config{f': `{key}`' if key else ''}", first_words(cls), cls, ()
    for name in known("methods"):
        kind = class_of("methods", name, base=Method)
        yield f"## Method `{name}`", first_words(kind), kind.Config, ("name",)
    data = [
        ("", recipe.RecipeConfig),
        ("sources[] of files", recipe.FileSource),
        ("sources[] of generators", recipe.GeneratorSource),
        ("split", recipe.SplitConfig),
        ("eval", recipe.ScoringConfig),
        ("image", recipe.ImageConfig),
    ]
    for key, cls in data:
        yield f"## Recipe{f': `{key}`' if key else ''}", first_words(cls), cls, ()
    for name in known("data.transforms"):
        kind = class_of("data.transforms", name, base=RowTransform)
        yield f"## Transform `{name}`", first_words(kind), kind.Config, ("use",)


def first_words(cls: type) -> str:
    """The first sentence of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def texts(cls: type) -> dict[str, str]:
    """Docstrings of the keys of a class and of those it inherits from, by key."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (isinstance(base, type) and issubclass(base, Config)) or base is Config:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        statements = getattr(body, "body", [])
        for key, said in zip(statements, statements[1:], strict=False):
            if not isinstance(key, ast.AnnAssign) or not isinstance(key.target, ast.Name):
                continue
            if (
                isinstance(said, ast.Expr)
                and isinstance(said.value, ast.Constant)
                and isinstance(said.value.value, str)
            ):
                out[key.target.id] = " ".join(said.value.value.split())
    return out


def undocumented() -> list[str]:
    """Keys without a docstring, as ``Class.key``."""
    found = {cls: texts(cls) for _, _, cls, _ in parts()}
    found.update({inner: texts(inner) for cls in list(found) for inner in _inner(cls)})
    return [f"{cls.__qualname__}.{key}" for cls, said in found.items() for key in cls.model_fields if key not in said]


def _inner(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in cls.model_fields.values():
        for kind in _classes(field.annotation):
            yield kind
            yield from _inner(kind)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _classes(part)


def page() -> str:
    """docs/config.md."""
    out = [
        "# Config reference",
        "",
        "Every key of a run config, of the methods in it, and of a data recipe, written from the config classes by",
        "`python scripts/config_reference.py`. Editors that know JSON Schema check a run config while it is typed against",
        "[config.schema.json](config.schema.json): `# yaml-language-server: $schema=…/config.schema.json`.",
        "",
        "`defaults` in a run config holds keys of `stages[]` that lie under every stage; a key of a stage replaces it whole.",
    ]
    for heading, words, cls, beside in parts():
        out += ["", heading, "", words]
        said = texts(cls)
        if cls.model_fields:
            out += ["", "| key | type | default | |", "|---|---|---|---|"]
            out += [row(key, field, said.get(key, "")) for key, field in cls.model_fields.items()]
        else:
            out += ["", f"No keys but `{beside[0]}`." if beside else "No keys."]
        for inner in dict.fromkeys(_inner(cls)):
            if not heading.startswith("## Run") and not heading.startswith("## Recipe"):
                out += [
                    "",
                    f"`{inner.__name__}`: {first_words(inner)}",
                    "",
                    "| key | type | default | |",
                    "|---|---|---|---|",
                ]
                out += [row(key, field, texts(inner).get(key, "")) for key, field in inner.model_fields.items()]
    return "\n".join(out) + "\n"


def row(key: str, field: FieldInfo, said: str) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        shown = "as below"
    else:
        shown = "required" if default is PydanticUndefined else f"`{json.dumps(_plain(default), ensure_ascii=False)}`"
    limits = [f"{word} {getattr(m, key)}" for m in field.metadata for key, word in _LIMITS.items() if hasattr(m, key)]
    kind = f"{_words(field.annotation)}{', ' + ', '.join(limits) if limits else ''}"
    return f"| `{key}` | {kind} | {shown} | {said} |".replace("\n", " ")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _words(annotation: Any) -> str:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(inside[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (list, tuple, set, frozenset):
        return f"list of {_words(inside[0])}" if inside else "list"
    if origin is dict:
        return "mapping"
    if inside:
        return " or ".join(dict.fromkeys(_words(part) for part in inside))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any"}
    return names.get(annotation) or getattr(annotation, "__name__", str(annotation))


def json_schema() -> str:
    """docs/config.schema.json: a run config as a user writes it, ``defaults`` and ``use`` of methods included."""
    out = schema.RunConfig.model_json_schema()
    definitions = out["$defs"]
    for cls in (schema.RunConfig, *dict.fromkeys(_inner(schema.RunConfig))):
        target = out if cls is schema.RunConfig else definitions[cls.__name__]
        for key, text in texts(cls).items():
            target["properties"][key]["description"] = text
    stage = definitions["StageConfig"]
    rest = {key: value for key, value in stage.items() if key != "required"}
    definitions["Defaults"] = {**rest, "title": "Defaults", "description": "Keys that lie under every stage."}
    out["properties"]["defaults"] = {"$ref": "#/$defs/Defaults"}
    stage.pop("required", None)  # what a stage lacks may stand in defaults
    return (
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **out}, indent=1, sort_keys=True) + "\n"
    )


def main() -> None:
    """Write both files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    args = parser.parse_args()
    bare = undocumented()
    if bare:
        sys.exit(f"keys without a docstring: {', '.join(bare)}")
    for path, text in ((PAGE, page()), (SCHEMA, json_schema())):
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} is stale: run python scripts/config_reference.py")


if __name__ == "__main__":
    main()
