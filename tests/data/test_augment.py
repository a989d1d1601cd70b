"""Changes of pictures, on a picture of two by two pixels."""

import pytest
from PIL import Image

from mcit.core.errors import DataError
from mcit.core.types import PictureChange
from mcit.data.augment import KINDS, changed


def square():
    image = Image.new("RGB", (2, 2))
    image.putdata([(200, 0, 0), (0, 100, 0), (0, 0, 50), (10, 20, 30)])
    return image


def after(kind, *values):
    return list(changed(square(), [PictureChange(kind, values)], where="f:1:r").getdata())


def test_by_hand():
    assert after("flip") == [(0, 100, 0), (200, 0, 0), (10, 20, 30), (0, 0, 50)]
    assert after("brightness", 0.5)[0] == (100, 0, 0)
    assert after("grey")[0] == (60, 60, 60)  # 0.299 * 200
    assert after("colour", 0.0)[0] == (60, 60, 60) and after("contrast", 1.0) == list(square().getdata())
    assert after("crop", 0, 0, 1, 1) == list(square().getdata()) and after("rotate", 0.0) == list(square().getdata())
    assert after("crop", 0, 0, 0.5, 0.5) == [(200, 0, 0)] * 4
    twice = changed(square(), [PictureChange("flip"), PictureChange("flip")], where="")
    assert list(twice.getdata()) == list(square().getdata())
    assert after("blur", 1.0) != list(square().getdata())
    assert set(KINDS) == {"flip", "grey", "crop", "rotate", "brightness", "contrast", "colour", "blur"}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("flipp", (), "there is no picture change 'flipp'"),
        ("crop", (0.0,), "takes 4 number"),
        ("crop", (0.5, 0, 0.2, 1), "left < right"),
    ],
)
def test_changes_that_are_none(kind, values, message):
    with pytest.raises(DataError, match=message) as caught:
        after(kind, *values)
    assert caught.value.problems[0].where == "f:1:r"
