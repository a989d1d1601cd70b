"""Tensors on disk: safetensors only, written whole or not at all. torch is imported by the first call, not by import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcit.core.errors import StateError
from mcit.core.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], *, note: str | None = None, durable: bool = True
) -> None:
    """Write tensors by name, sorted, so that equal content gives equal bytes.

    `note` becomes the one metadata entry ``format`` (more than one is not byte-stable in safetensors); `durable` as for
    `write_bytes`.
    """
    from safetensors.torch import save

    ordered = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    write_bytes(path, save(ordered, metadata={"format": note or "pt"}), durable=durable)


def load_tensors(path: Path | str, *, device: str = "cpu") -> dict[str, Any]:
    """Read all tensors of a file. Raises StateError for a missing or damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise StateError("file is missing", where=str(path), fix="restore it, or remove its folder")
    try:
        return load_file(str(path), device=device)
    except (SafetensorError, OSError) as error:
        raise StateError(f"not a whole safetensors file ({error})", where=str(path), fix="restore it") from None


class TensorFile:
    """A safetensors file that stays on disk: only what is asked for is read. Raises StateError if it is damaged."""

    def __init__(self, path: Path | str) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise StateError(f"not a whole safetensors file ({error})", where=str(path), fix="remove it") from None
        self.names = frozenset(self._file.keys())

    def get(self, name: str) -> Tensor:
        """A whole tensor."""
        found: Tensor = self._file.get_tensor(name)
        return found

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A part of a tensor's first axis."""
        found: Tensor = self._file.get_slice(name)[start:stop]
        return found
