"""Opens images as `datasets` stores them, in any of PIL's modes, and finds those that cannot be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .errors import FinetuneError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

_NO_RANGE = {"I": "32-bit whole numbers", "F": "floating-point numbers"}
_SIXTEEN_BITS = 65535


class UnreadableImage(FinetuneError):
    """An image that cannot be read; the message names it and says why."""


def open_image(stored: Mapping[str, Any]) -> Image:
    """An image as `datasets` stores it (bytes or path) as RGB, as it is meant to be looked at.

    What is transparent becomes white, 16-bit greys are scaled by their range (PIL's own conversion clips them to
    white), and a camera's note of how it was held is obeyed, as it is by transformers' pipelines.

    Raises:
        UnreadableImage: it cannot be read, or its numbers have no known range (PIL's modes I and F).
    """
    from PIL import Image, ImageOps

    with _opened(stored) as image:
        if _has_16_bits(image):
            image = _eight_bits(image)
        if image.mode in _NO_RANGE:
            raise ValueError(_no_range(image))
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def looked_over(images: Sequence[Mapping[str, Any]]) -> tuple[dict[int, str], set[int]]:
    """The rows whose image cannot be read, with the reason, and those with 16-bit greys.

    Every file is read once, as cheaply as its format allows: JPEG is decoded at an eighth of its size, of PNG only the
    checksums are read.
    """
    found, deep = {}, set()
    for row, stored in enumerate(images):
        try:
            with _opened(stored) as image:
                is_deep = _has_16_bits(image)
                if image.mode in _NO_RANGE and not is_deep:
                    raise ValueError(_no_range(image))
                if image.format == "PNG":
                    image.verify()
                else:
                    image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                    image.load()
        except UnreadableImage as error:
            found[row] = str(error)
        else:
            deep |= {row} if is_deep else set()
    return found, deep


@contextlib.contextmanager
def _opened(stored: Mapping[str, Any]) -> Iterator[Image]:
    """The image, not decoded; an error in it, also while it is used, names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open(stored["path"], "rb") if stored["bytes"] is None else BytesIO(stored["bytes"]) as file:
            yield Image.open(file)
    # PIL raises SyntaxError for broken PNG chunks, ValueError and others for broken headers of rarer formats.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise UnreadableImage(f"image {stored['path'] or '(embedded)'} cannot be read: {reason}") from error


def _has_16_bits(image: Image) -> bool:
    """Older versions of PIL open 16-bit PNG files in mode I; PNG has nothing larger."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _eight_bits(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    grey = np.asarray(image).astype("uint32")
    out = Image.fromarray(((grey * 255 + _SIXTEEN_BITS // 2) // _SIXTEEN_BITS).astype("uint8"))
    out.info.update({key: value for key, value in image.info.items() if key == "exif"})
    return out


def _no_range(image: Image) -> str:
    return (
        f"it has {_NO_RANGE[image.mode]} (PIL's mode {image.mode}), whose black and white are not known; save it "
        "with 8 or 16 bits"
    )
