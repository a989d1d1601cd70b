"""Any Hugging Face image-text-to-text model, by folder or hub id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mcit.core.errors import ConfigError
from mcit.core.schema import BaseConfig

_FIX = "set base.model to a folder written by save_pretrained, or to a hub id when a network is there"


def materialize(base: BaseConfig, *, announce: Callable[[str], None] | None = None) -> Path:
    """The local folder; a hub id is looked up in the hub cache and downloaded if the hub is reachable.

    Raises ConfigError when there is neither.
    """
    if not base.model:
        raise ConfigError("is required for family hf", where="base.model", fix=_FIX)
    folder = Path(base.model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError("holds no config.json", where=f"base.model: {folder}", fix=_FIX)
        return folder.resolve()
    if not _is_hub_id(base.model):
        raise ConfigError("folder does not exist", where=f"base.model: {base.model}", fix=_FIX)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if announce and _cached(base) is None:
        announce(f"downloading {base.model} from the Hugging Face hub")
    try:
        return Path(snapshot_download(base.model, revision=base.revision, ignore_patterns=["*.bin", "*.pth", "*.pt"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"neither a folder nor available from the hub ({type(error).__name__})",
            where=f"base.model: {base.model}",
            fix=_FIX,
        ) from error


def pending(base: BaseConfig) -> str | None:
    """Says that a hub download is due, or None."""
    if (
        not base.model
        or Path(base.model).expanduser().is_dir()
        or not _is_hub_id(base.model)
        or _cached(base) is not None
    ):
        return None
    return f"{base.model} from the Hugging Face hub (there is no such folder here)"


def _is_hub_id(model: str) -> bool:
    """``owner/name``; a path is none, and neither is a name below a folder that is here."""
    owner, slash, name = model.partition("/")
    return (
        bool(slash and owner and name)
        and "/" not in name
        and owner not in (".", "..", "~")
        and not Path(owner).is_dir()
    )


def _cached(base: BaseConfig) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    if not base.model or not _is_hub_id(base.model):
        return None
    found = try_to_load_from_cache(base.model, "config.json", revision=base.revision)
    return found if isinstance(found, str) else None
