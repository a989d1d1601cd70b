"""What training never changes goes into an export as the base's own bytes.

Processor, tokenizer, template, generation config, code and licence are copied file by file, never written anew: a newer
transformers would write them in a form that the one the base was made with may not read.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcit.core.errors import StateError
from mcit.core.files import sha256_file, write_json
from mcit.models.basefiles import read_mapping

_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
_FOLDERS = ("additional_chat_templates",)
_NOT = ("config.json", "adapter_config.json", "export.json", "mcit.json", "*.index.json")
_DTYPES = ("dtype", "torch_dtype")
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Template:
    """A chat template that a run was given in place of the base's (``base.chat_template``)."""

    file: Path
    sha256: str

    def put(self, folder: Path) -> None:
        """Where every processor looks first. Raises StateError when the file is not the one that the run began with."""
        if not self.file.is_file() or sha256_file(self.file) != self.sha256:
            fix = "restore the chat template that the run began with"
            raise StateError("is gone, or is another file now", where=str(self.file), fix=fix)
        shutil.copyfile(self.file, folder / _TEMPLATE)


def copy_unchanged(base: Path, folder: Path, *, template: Template | None = None) -> list[str]:
    """Copy the base's files that no training changes into `folder`, over what may be there; returns their names.

    `template` takes the place of the base's own chat template.
    """
    names = set()
    for home in (base, *(base / name for name in _FOLDERS)):
        for file in (file for pattern in _FILES for file in home.glob(pattern)):
            if file.is_file() and not file.name.startswith(".") and not any(file.match(name) for name in _NOT):
                names.add(str(file.relative_to(base)))
    for name in sorted(names):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(base / name, folder / name)
    if template is not None:
        names.discard(_TEMPLATE)
        template.put(folder)
    return sorted(names)


def copy_config(base: Path, folder: Path, dtype: torch.dtype) -> bool:
    """The base's ``config.json``, with another dtype where the weights are written in another one.

    Returns whether it is the base's bytes.
    """
    written = str(dtype).removeprefix("torch.")
    old = read_mapping(base / "config.json")
    new = _with_dtype(old, written)
    if not any(key in new for key in _DTYPES):
        new["torch_dtype"] = written  # the name that older and newer versions of transformers read
    if new == old:
        shutil.copyfile(base / "config.json", folder / "config.json")
        return True
    write_json(folder / "config.json", new)
    return False


def _with_dtype(value: Any, dtype: str) -> Any:
    """A config in which every dtype that is given is `dtype`, sections included."""
    if not isinstance(value, dict):
        return value
    return {k: dtype if k in _DTYPES and isinstance(v, str) else _with_dtype(v, dtype) for k, v in value.items()}
