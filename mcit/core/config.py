"""Typed configuration: frozen pydantic models, YAML in, all problems out together, near misses suggested."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcit.core.errors import ConfigError, Problem

__all__ = ["Config", "Field", "MethodConfig", "apply_overrides", "load_yaml", "parse", "suggestion", "without_unknown"]


class Config(BaseModel):
    """Base of every config section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class MethodConfig(Config):
    """Base of a method's settings."""


C = TypeVar("C", bound=Config)


def suggestion(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if known else ""


def load_yaml(path: Path | str) -> Any:
    """Read one YAML document with the safe loader.

    Raises ConfigError naming file and line for a missing, unreadable or malformed file or a key given twice.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError("file does not exist", where=str(path), fix="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", where=str(path)) from None
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"not valid YAML: {error.problem}", where=f"{path}:{line}", fix="mend the line") from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (plain YAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads `1e-4` as a string; accept it as the number everybody means.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def apply_overrides(data: Any, overrides: Sequence[str]) -> Any:
    """Apply ``a.b.0.c=value`` settings (values are YAML) to a copy of nested dicts and lists.

    Raises ConfigError for a setting without ``=`` or a path through something that is not a mapping or list.
    """
    data = copy.deepcopy(data)
    for item in overrides:
        path, equals, text = item.partition("=")
        if not equals or not path.strip():
            raise ConfigError(
                "expected key.path=value", where=f"--set {item}", fix="for example --set defaults.epochs=2"
            )
        try:
            value = yaml.load(text, Loader=_StrictLoader)
        except yaml.YAMLError:
            raise ConfigError("the value is not valid YAML", where=f"--set {item}", fix="quote it") from None
        node = data
        keys = path.strip().split(".")
        for depth, key in enumerate(keys):
            last = depth == len(keys) - 1
            if isinstance(node, list):
                if not key.isdigit() or int(key) >= len(node):
                    raise ConfigError(
                        f"'{key}' is not a position of a list of {len(node)}", where=f"--set {item}", fix="count from 0"
                    )
                if last:
                    node[int(key)] = value
                else:
                    node = node[int(key)]
            elif isinstance(node, dict):
                if last:
                    node[key] = value
                else:
                    if node.get(key) is None:
                        node[key] = {}
                    node = node[key]
            else:
                raise ConfigError(f"'{'.'.join(keys[:depth])}' is a single value", where=f"--set {item}")
    return data


def parse(model: type[C], data: Any, *, where: str = "") -> tuple[C | None, list[Problem]]:
    """Validate `data`; return the config, or None and every problem with its path."""
    if not isinstance(data, Mapping):
        return None, [Problem(where or "config", "expected a mapping of keys to values", "see configs/ for examples")]
    try:
        return model.model_validate(dict(data)), []
    except ValidationError as error:
        return None, [_problem(model, item, where) for item in error.errors()]


def without_unknown(model: type[Config], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` without keys the model does not know, so that the rest can still be checked."""
    rest: dict[str, Any] = copy.deepcopy(dict(data))
    try:
        model.model_validate(rest)
    except ValidationError as error:
        for item in error.errors():
            if item["type"] == "extra_forbidden":
                node: Any = rest
                for part in item["loc"][:-1]:
                    node = node[part]
                node.pop(item["loc"][-1], None)
    return rest


def _problem(model: type[BaseModel], item: Any, where: str) -> Problem:
    loc = [part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    path = where
    for part in loc:
        path = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}" if path else str(part)
    if item["type"] == "extra_forbidden":
        return Problem(path, "unknown key", suggestion(str(loc[-1]), _fields_at(model, loc[:-1])))
    if item["type"] == "missing":
        return Problem(path, "is required", "add it")
    value = item.get("input")
    shown = f" (got {value!r})" if isinstance(value, (str, int, float, bool)) or value is None else ""
    return Problem(path, item["msg"].removeprefix("Value error, ") + shown, "")


def _fields_at(model: type[BaseModel], loc: Sequence[Any]) -> set[str]:
    """Field names of the config section that `loc` leads to."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue
        current = next(iter(_models_in(field.annotation)), current)
    return set(getattr(current, "model_fields", {}))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in getattr(annotation, "__args__", ()) for found in _models_in(arg)]
