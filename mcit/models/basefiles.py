"""The files of a base model's folder: which may be read, that nothing outside is named, and what they contain as one number.

A base comes from elsewhere. Its weights are read from ``*.safetensors`` files of the folder and from nothing else: an index
or a config that names another file, or a file elsewhere, is refused before any library opens it. Links are followed (the
hub's cache consists of them): names must be plain, and the content behind them is in the digest.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcit.core.errors import ConfigError, McitError
from mcit.core.files import NOT_JSON, digest_of
from mcit.core.hashes import sha256_files

_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_INDEX = ".safetensors.index.json"
_MAPPINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
_UNREAD = frozenset({".md", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf", ".gguf", ".h5", ".msgpack", ".onnx"})
_UNREAD |= {".bin", ".pt", ".pth", ".ckpt", ".pkl"}  # never opened: weights come from safetensors alone
_WHOLE = "give the whole folder that save_pretrained wrote, or fetch the model again"


def check_base(path: Path | str) -> None:
    """Raise ConfigError for a folder that asks for files outside it, or whose files are cut off or no mappings.

    Nothing of the weights is read but the headers.
    """
    root = Path(path)
    stamps = None
    with contextlib.suppress(OSError):
        stamps = tuple((file.name, *_stamp(file)) for file in sorted(root.iterdir()))
    if stamps is None:  # a link that leads nowhere has no time
        _check.__wrapped__(root, ())
    else:
        _check(root, stamps)


def _stamp(file: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    seen = file.stat()
    return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev


@functools.lru_cache(maxsize=8)
def _check(root: Path, stamps: tuple[tuple[str | int, ...], ...]) -> None:
    """`check_base` of a folder whose files have these sizes and times: once per process."""
    for name in _MAPPINGS:
        if (root / name).is_file():
            read_mapping(root / name)
    if (root / "adapter_config.json").exists():
        raise ConfigError(
            "the folder holds an adapter; loading it would load the model that adapter names, from another place",
            where=str(root / "adapter_config.json"),
            fix="give the base itself as base.model and the adapter's folder as base.adapter",
        )
    with contextlib.suppress(FileNotFoundError):
        for file in sorted(root.iterdir()):
            if not (file.is_file() or file.is_dir()) and file.exists():
                raise ConfigError("is no regular file", where=str(file), fix="remove it from the model's folder")
    for name in _shards(root):
        _check_header(root / name)


def base_files(path: Path | str) -> dict[str, Path]:
    """Every file of the folder that a model, processor or its code can be read from, by name relative to the folder."""
    root = Path(path).resolve()
    found = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    return {
        name: file
        for name, file in found.items()
        if file.suffix.lower() not in _UNREAD
        and not any(part.startswith(".") or part == "__pycache__" for part in Path(name).parts)
        and not file.stem.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
    }


def base_digest(path: Path | str) -> str:
    """sha256 over names and contents of `base_files`; `mcit.core.hashes` says when a file is read again.

    Raises ConfigError for a file that cannot be read.
    """
    files = base_files(path)
    digests = dict(zip(files, sha256_files(files.values()), strict=True))
    for name, digest in digests.items():
        if digest is None:
            raise ConfigError("cannot be read", where=str(files[name]), fix="check its permissions")
    return digest_of(digests)


@contextlib.contextmanager
def reading(path: Path | str, what: str, *, fix: str) -> Iterator[None]:
    """Whatever a library makes of files it did not write becomes a ConfigError at `path`; running out of memory stays."""
    try:
        yield
    except (McitError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = "" if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: "
        raise ConfigError(f"{what}: {name}{said}", where=str(path), fix=fix) from error


def _shards(root: Path) -> list[str]:
    """Names of the weight files that would be read. Raises ConfigError for one that is not a plain name in the folder."""
    named = {file.name: file.name for file in sorted(root.glob("*.safetensors"))}
    config = read_mapping(root / "config.json") if (root / "config.json").is_file() else {}
    explicit = config.get("transformers_weights")
    if explicit is not None:
        named[explicit if isinstance(explicit, str) else repr(explicit)] = "config.json"
    for index in sorted(root.glob(f"*{_INDEX}")):
        weights = read_mapping(index).get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(value, str) for value in weights.values()):
            raise ConfigError("has no weight_map of names to files", where=str(index), fix=_WHOLE)
        named.update({value: index.name for value in weights.values()})
    shards = []
    for name, source in named.items():
        if name.endswith(_INDEX) and name == Path(name).name:
            continue
        if not _SHARD.fullmatch(name):
            raise ConfigError(
                f"{source} names {name!r}, which is not a plain *.safetensors name inside the folder",
                where=str(root / source),
                fix="take the model from a source you trust; its weights must lie beside config.json as safetensors",
            )
        if not (root / name).is_file():
            raise ConfigError(f"{source} names {name}, which is missing", where=str(root / name), fix=_WHOLE)
        shards.append(name)
    return sorted(shards)


def _check_header(file: Path) -> None:
    """A safetensors file says in its header how long it is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        what = f"weights are cut off or damaged ({error})"
        raise ConfigError(what, where=str(file), fix=_WHOLE) from None


def read_mapping(file: Path) -> dict[str, Any]:
    """A JSON object of the folder. Raises ConfigError for a file that holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"not valid JSON ({said})", where=str(file), fix=_WHOLE) from None
    if not isinstance(found, dict):
        raise ConfigError(f"holds a {type(found).__name__}, not a mapping", where=str(file), fix=_WHOLE)
    return found
