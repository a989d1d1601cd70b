"""Pictures that a source holds itself, as bytes of a table or as ``data:`` addresses: written once each, named by content."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from mcit.core.files import sha256_bytes
from mcit.data.formats.element import RowError

_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


class Embedded:
    """A folder of pictures taken out of rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Store a picture's bytes; returns its name in the folder."""
        ending = next((end for mark, end in _ENDINGS.items() if data.startswith(mark)), ".img")
        name = sha256_bytes(data)[:40] + ending
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return name


def decoded_address(address: str) -> bytes:
    """The bytes of a ``data:…;base64,…`` address. Raises RowError for another kind, or a damaged one."""
    head, comma, body = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RowError("a picture is a data: address without base64", "write data:image/png;base64,… or a path")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise RowError("a picture's base64 text is damaged", "encode it again, or remove the row") from None
