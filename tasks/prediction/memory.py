"""Estimate from its header how much memory a picture needs, before it is decoded."""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

from changepair.tasks.common.decoding import MAX_PIXELS, is_deep_png, is_deep_tiff, open_image

OPAQUE, WEBP, TRANSPARENT = 18, 26, 36
"""Bytes per pixel for decoding 8-bit pictures, at most. Measured with 3000x3000 pixels of each mode: 10 to 17, 23 and 33."""
DEEP = 16
"""Bytes per pixel for decoding deeper pictures, at most, in addition to two copies of the samples. Measured: 8 for 16-bit grey, 12 for
16-bit RGBA."""
RGB = 3


class Needs(NamedTuple):
    """The memory that a picture needs."""

    size: tuple[int, int]
    """Height and width in the file, in pixels."""
    decoding: int
    """Bytes while it is decoded, scaled and cut, including the file."""
    held: int
    """Bytes afterwards, as samples and as RGB."""

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.size[0] * self.size[1]


def needs_of(content: bytes) -> Needs:
    """Estimate the memory of `decode` and `to_picture` (tasks/common/decoding.py). Files that they refuse need only their own size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size, decoding, held = _header(content)
    except Exception:  # the decoder reports why it refuses the file
        return Needs((0, 0), len(content), 0)
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS:
        return Needs((0, 0), len(content), 0)
    return Needs(size, len(content) + pixels * decoding, pixels * held)


def _header(content: bytes) -> tuple[tuple[int, int], int, int]:
    """Return height and width, and bytes per pixel during decoding and afterwards."""
    if content[128:132] == b"DICM":
        import pydicom

        data = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        return (int(data.Rows), int(data.Columns)), 2 * 8 + DEEP, 8 + RGB
    if is_deep_tiff(content):
        import tifffile

        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page: Any = file.pages[0]
            samples = -(-page.bitspersample // 8) * page.samplesperpixel
            return (page.imagelength, page.imagewidth), 2 * samples + DEEP, samples + 8 + RGB
    with open_image(io.BytesIO(content)) as image:
        size, bands = (image.height, image.width), len(image.getbands())
        if is_deep_png(content) or image.mode in ("I", "F") or image.mode.startswith("I;16"):
            samples = 2 * (bands + ("transparency" in image.info)) if is_deep_png(content) else 4
            return size, 2 * samples + DEEP, samples + 8 + RGB
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            return size, TRANSPARENT, 8 + RGB
        return size, WEBP if image.format == "WEBP" else OPAQUE, RGB
