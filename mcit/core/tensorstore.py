"""Named method tensors in host memory, written as one safetensors file. Needs no torch import: it only calls tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mcit.core.errors import StateError
from mcit.core.tensorfile import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

_SEPARATOR = "|"


class HostTensors:
    """The TensorStore that methods get: keyed by (kind, tensor or unit name)."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, str], Tensor] = {}

    def get(self, kind: str, name: str) -> Tensor | None:
        """The tensor, or None. It is the stored one: do not change it in place, `put` a new one."""
        return self._tensors.get((kind, name))

    def require(self, kind: str, name: str) -> Tensor:
        """The tensor. Raises StateError if it is not there."""
        tensor = self.get(kind, name)
        if tensor is None:
            raise StateError(f"no '{kind}' of '{name}'", where="method state", fix="start the stage anew")
        return tensor

    def put(self, kind: str, name: str, tensor: Tensor) -> None:
        """Store a detached copy in host memory."""
        if _SEPARATOR in kind or _SEPARATOR in name:
            what = f"'{_SEPARATOR}' is not allowed in the name of a method tensor"
            raise StateError(what, where=f"{kind} {name}", fix="let the method name it otherwise")
        self._tensors[kind, name] = tensor.detach().to("cpu", copy=True).contiguous()

    def accumulate(self, kind: str, name: str, tensor: Tensor, factor: float = 1.0) -> None:
        """Add ``factor * tensor`` to the stored one in place, or store it; the stored one keeps its type."""
        kept = self._tensors.get((kind, name))
        if kept is None:
            self.put(kind, name, tensor.detach() * factor)
        else:
            kept.add_(tensor.detach().to("cpu", kept.dtype), alpha=factor)

    def drop(self, kind: str, name: str | None = None) -> None:
        """Forget one tensor, or all of a kind."""
        for key in [k for k in self._tensors if k[0] == kind and name in (None, k[1])]:
            del self._tensors[key]

    def names(self, kind: str) -> list[str]:
        """Sorted names of a kind."""
        return sorted(n for k, n in self._tensors if k == kind)

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def save(self, path: Path) -> None:
        """Write all tensors; no file when there are none."""
        if self._tensors:
            save_tensors(path, {_SEPARATOR.join(key): tensor for key, tensor in self._tensors.items()})

    def load(self, path: Path) -> None:
        """Replace the content by a file's; an absent file is an empty store. Raises StateError for a damaged one."""
        self._tensors = {}
        if path.is_file():
            for key, tensor in load_tensors(path).items():
                kind, _, name = key.partition(_SEPARATOR)
                self._tensors[kind, name] = tensor
