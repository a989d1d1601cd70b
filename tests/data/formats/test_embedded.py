"""Pictures that rows hold themselves."""

import base64
import io

import pytest
from PIL import Image

from mcit.data.formats.element import RowError
from mcit.data.formats.embedded import Embedded, decoded_address


def png(colour=(1, 2, 3)):
    out = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(out, "PNG")
    return out.getvalue()


def test_equal_pictures_are_written_once(tmp_path):
    held = Embedded(tmp_path / "held")
    first, second, third = held.put(png()), held.put(png()), held.put(png((9, 9, 9)))
    assert first == second != third and first.endswith(".png")
    assert sorted(p.name for p in held.folder.iterdir()) == sorted({first, third})
    assert (held.folder / first).read_bytes() == png()


def test_addresses():
    assert decoded_address("data:image/png;base64," + base64.b64encode(png()).decode()) == png()
    for bad in ("data:image/png,xx", "data:image/png;base64,*", "data:"):
        with pytest.raises(RowError) as caught:
            decoded_address(bad)
        assert caught.value.fix
