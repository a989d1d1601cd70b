"""Typed configuration: frozen pydantic models, YAML in, all problems out together, near misses suggested."""

from __future__ import annotations

import copy
import datetime
import difflib
import re
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
_LARGEST, _MOST = 4 << 20, 100_000
"""Bytes of a config file, and values in it."""
_ALTERNATIVE = re.compile(r"function-|literal\[|list\[|tuple\[|dict\[|(?:str|int|float|bool|none)$")
"""What pydantic puts into a path for one of several types of a field."""
_YAML = "correct the line"


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
        if path.exists() and not path.is_file():
            raise ConfigError("is no regular file", where=str(path), fix="name a YAML file")
        size = path.stat().st_size
        if size > _LARGEST:
            what = f"has {size:,} bytes, a config is no larger than {_LARGEST:,}"
            raise ConfigError(what, where=str(path), fix="name a YAML file of settings")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("file does not exist", where=str(path), fix="check the path") from None
    except UnicodeDecodeError as error:
        what = f"is no UTF-8 text (byte {error.start})"
        raise ConfigError(what, where=str(path), fix="save it as UTF-8, or name another file") from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path), fix="check its permissions") from None
    return _parsed(text, where=str(path))


def _parsed(text: str, *, where: str) -> Any:
    """One YAML document of plain values. Raises ConfigError with the line."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        _plain(value, [_MOST])
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", where=place, fix=_YAML) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = (
            f"holds the control character {chr(error.character)!a}"
            if isinstance(error.character, int)
            else str(error.reason)
        )
        raise ConfigError(f"not valid YAML: {what}", where=f"{where}:{line}", fix="remove the character") from None
    except RecursionError:
        raise ConfigError("is nested too deeply", where=where, fix="see configs/ for examples") from None
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise ConfigError(
            f"not valid YAML: {error}", where=where, fix="put the value in quotes if it is text"
        ) from None


def _plain(value: Any, left: list[int]) -> None:
    """Count values with every alias followed, so that a short text cannot become a config without end."""
    left[0] -= 1
    if left[0] < 0:
        raise yaml.MarkedYAMLError(problem=f"aliases make more than {_MOST:,} values of it")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is no text: put it in quotes")
            _plain(item, left)
    elif isinstance(value, (list, set)):
        for item in value:
            _plain(item, left)
    elif isinstance(value, (datetime.date, bytes)):
        raise yaml.MarkedYAMLError(problem=f"{value!s} is a {type(value).__name__}: put it in quotes")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (plain YAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem="a key is a list or mapping", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads `1e-4` as a string; accept it as the number everybody means.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
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
        value = _parsed(text, where=f"--set {item}")
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
                fix = "name a key of a section: --set defaults.epochs=2"
                raise ConfigError(f"'{'.'.join(keys[:depth])}' is a single value", where=f"--set {item}", fix=fix)
    return data


def parse(model: type[C], data: Any, *, where: str = "") -> tuple[C | None, list[Problem]]:
    """Validate `data`; return the config, or None and every problem with its path."""
    if not isinstance(data, Mapping):
        return None, [Problem(where or "config", "expected a mapping of keys to values", "see configs/ for examples")]
    try:
        return model.model_validate(dict(data)), []
    except ValidationError as error:
        return None, _merged([_problem(model, item, where) for item in error.errors()])


def _merged(problems: list[Problem]) -> list[Problem]:
    """One problem per place: pydantic reports each alternative of a field by itself."""
    out: dict[str, Problem] = {}
    for problem in problems:
        first = out.setdefault(problem.where, problem)
        if first is not problem:
            fixes = [fix for fix in dict.fromkeys((first.fix, problem.fix)) if fix]
            out[problem.where] = Problem(first.where, first.what, ", or ".join(fixes))
    return list(out.values())


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
    loc = [part for part in item["loc"] if not (isinstance(part, str) and _ALTERNATIVE.match(part))]
    path = where
    for part in loc:
        path = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}" if path else str(part)
    if item["type"] == "extra_forbidden":
        return Problem(path, "unknown key", suggestion(str(loc[-1]), _fields_at(model, loc[:-1])))
    if item["type"] == "missing":
        return Problem(path, "is required", "add it")
    value = item.get("input")
    shown = f" (got {value!r})" if isinstance(value, (str, int, float, bool)) or value is None else ""
    return Problem(path, (item["msg"].removeprefix("Value error, ") + shown)[:300], _cure(item))


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}


def _cure(item: Any) -> str:
    """What to write instead, from what pydantic knows of the field."""
    kind, ctx = str(item["type"]), item.get("ctx", {})
    for key, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if key in ctx:
            return f"give a number {words} {ctx[key]}"
    if kind == "literal_error":
        return (
            suggestion(str(item.get("input")), re.findall(r"'([^']*)'", str(ctx.get("expected"))))
            or "see docs/config.md"
        )
    if kind == "finite_number":
        return "give a finite number"
    word = _WORDS.get(kind.partition("_")[0])
    return f"give {word}" if word and kind.endswith(("_type", "_parsing", "_from_float")) else "see docs/config.md"


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
