"""Hand a finished export to a repository of the Hugging Face hub. The only thing here that uses the network, when asked."""

from __future__ import annotations

from pathlib import Path

from mcit.core.errors import ConfigError, StateError
from mcit.core.types import JsonDict


def check_repository(name: str) -> None:
    """Raise ConfigError unless `name` can be a repository, and the hub may be asked; before anything is written."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(str(error).splitlines()[0], where=f"--push {name}", fix="give owner/name") from None
    if name.count("/") != 1:
        raise ConfigError("the owner is missing", where=f"--push {name}", fix="give owner/name")
    if constants.is_offline_mode():
        raise ConfigError(
            "the network is switched off", where=f"--push {name}", fix="unset HF_HUB_OFFLINE, or leave --push out"
        )


def push(folder: Path, name: str, record: JsonDict, *, private: bool = False) -> str:
    """Create the model repository if there is none and upload every file of the export in one commit; returns its URL.

    Raises StateError with the hub's reason; the export on disk is whole whatever happens.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of the HTTP client, whichever it is: refusals and no connection

    what = f"{record['kind']} of {', '.join(record['stages'])}"
    try:
        api = HfApi()
        url = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"mcit: {what}")
    except (HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise StateError(
            f"the hub did not take the export: {reason[0] if reason else type(error).__name__}",
            where=f"--push {name}",
            fix=f"log in with `hf auth login` (or set HF_TOKEN), then run the same command again; the export is in {folder}",
        ) from error
    return str(url)
