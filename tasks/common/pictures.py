"""Reads pictures as arrays: HxWx3 uint8, RGB."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

Pixels = NDArray[Any]  # HxW or HxWxC, as OpenCV takes them
Picture = NDArray[np.uint8]  # HxWx3, RGB
Mask = NDArray[np.bool_]  # HxW, True where something differs
Resize = Literal["squash", "aligned", "crop"]  # how a picture becomes a square
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
"""Those that are decoded, as Pillow calls them, whatever a file's name says. Of the others some run programs: PostScript is given to
Ghostscript."""
UNDECODABLE = (
    OSError, ValueError, SyntaxError, EOFError, struct.error, OverflowError, KeyError, IndexError, TypeError, MemoryError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What decoders raise on hostile bytes."""


def as_rgb(image: Image.Image) -> Image.Image:
    """Gives the picture as a viewer shows it: turned as its EXIF says, 16-bit greys scaled to 8 bits, transparency laid over white."""
    image = as_viewed(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image, dtype=np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")


def as_viewed(image: Image.Image) -> Image.Image:
    """Turns a picture, or a mask, as its EXIF says."""
    ImageOps.exif_transpose(image, in_place=True)
    return image


def open_image(stream: Path | IO[bytes]) -> Image.Image:
    """Opens a picture of one of FORMATS; its pixels are decoded when they are asked for. Raises what Pillow raises."""
    return Image.open(stream, formats=FORMATS)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens a picture, wherever it is; its pixels are decoded when they are asked for."""
    with path.open("rb") as stream, open_image(stream) as image:
        yield image


def read_image(path: Path) -> Image.Image:
    """Reads a picture as a viewer shows it, in RGB."""
    with opened(path) as image:
        return as_rgb(image)


def read_picture(path: Path, resolution: int | None = None) -> Picture:
    """Reads a picture as HxWx3 uint8 RGB; with `resolution`, squashed to that many pixels a side (bicubic)."""
    picture: Picture = np.array(read_image(path))
    return picture if resolution is None else squashed(picture, resolution)


def squashed(picture: Picture, side: int) -> Picture:
    """Squashes a picture to a square of that many pixels a side (bicubic)."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def cropped(picture: Picture, side: int) -> Picture:
    """Brings the shorter side to that many pixels (bicubic), and takes the middle of the other: as torchvision's Resize and CenterCrop."""
    height, width = picture.shape[:2]
    sizes = [side if edge == min(height, width) else int(side * edge / min(height, width)) for edge in (width, height)]
    image = Image.fromarray(picture).resize((sizes[0], sizes[1]), Image.Resampling.BICUBIC)
    left, top = (round((edge - side) / 2) for edge in image.size)
    return np.array(image.crop((left, top, left + side, top + side)))


def read_mask(path: Path, resolution: int) -> Mask:
    """Reads a mask (anything but 0 is True) at `resolution` pixels a side, by nearest neighbour."""
    with opened(path) as image:
        grey = as_viewed(image).convert("L").resize((resolution, resolution), Image.Resampling.NEAREST)
    return np.asarray(grey) > 0


def read_marks(path: Path) -> Mask:
    """Reads a mask at its own size, as a viewer shows it: anything but 0 is True."""
    with opened(path) as image:
        return np.asarray(as_viewed(image).convert("L")) > 0


def picture_size(path: Path) -> tuple[int, int]:
    """Gives height and width of a picture as a viewer shows it, from its head alone."""
    with opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        return (image.width, image.height) if turned else (image.height, image.width)


def png(array: NDArray[np.uint8] | Mask) -> bytes:
    """Gives the PNG bytes of an HxWx3 picture, an HxW grey picture or an HxW mask (0 and 255)."""
    import io

    stream = io.BytesIO()
    pixels = array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array
    # Level 1 costs a tenth of the time of level 6 for files a few percent larger; pairs are read once or twice.
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
