"""Changes of a picture that a view of a row asks for: pure functions of the picture and the change's numbers.

Which of them keep an answer true depends on the task: a flip swaps left and right, a crop moves every box. That is for the
method that makes the views to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mcit.core.config import suggestion
from mcit.core.errors import DataError
from mcit.core.types import PictureChange

_Function = Callable[..., Image.Image]


def changed(image: Image.Image, changes: Sequence[PictureChange], *, where: str) -> Image.Image:
    """The RGB picture after all changes in order. Raises DataError for an unknown change or unusable numbers."""
    for change in changes:
        if change.kind not in KINDS:
            fix = suggestion(change.kind, KINDS)
            raise DataError(f"there is no picture change '{change.kind}'", where=where, fix=fix)
        count, function = KINDS[change.kind]
        if len(change.values) != count:
            what = f"picture change '{change.kind}' takes {count} number(s), not {len(change.values)}"
            raise DataError(what, where=where, fix="see mcit.data.augment")
        try:
            image = function(image, *change.values)
        except ValueError as error:
            what = f"picture change '{change.kind}' cannot use {change.values}: {error}"
            raise DataError(what, where=where, fix=f"give values that {change.kind} takes") from None
    return image


def _crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """The part between these shares of width and height, scaled back to the picture's size."""
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError("use shares of the picture, left < right and top < bottom")
    width, height = image.size
    x1, y1 = int(left * width), int(top * height)
    box = (x1, y1, max(x1 + 1, round(right * width)), max(y1 + 1, round(bottom * height)))
    return image.crop(box).resize(image.size, Image.Resampling.BICUBIC)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turned counter-clockwise about the centre, same size, corners black."""
    return image.rotate(degrees, Image.Resampling.BICUBIC)


KINDS: dict[str, tuple[int, _Function]] = {
    "flip": (0, ImageOps.mirror),
    "grey": (0, lambda image: ImageOps.grayscale(image).convert("RGB")),
    "crop": (4, _crop),
    "rotate": (1, _rotate),
    "brightness": (1, lambda image, factor: ImageEnhance.Brightness(image).enhance(factor)),
    "contrast": (1, lambda image, factor: ImageEnhance.Contrast(image).enhance(factor)),
    "colour": (1, lambda image, factor: ImageEnhance.Color(image).enhance(factor)),
    "blur": (1, lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius))),
}
"""Name of a change to how many numbers it takes, and what it does."""
