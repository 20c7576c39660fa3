"""Read pictures as (H, W, 3) uint8 RGB and masks as (H, W) bool, and resize them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from changepair.tasks.common.decoding import FULL, Intensity, Undecodable, decode, marked, marks_of, to_picture
from changepair.tasks.common.decoding import Mask as Mask
from changepair.tasks.common.decoding import Picture as Picture
from changepair.tasks.common.decoding import open_image as open_image

Pixels = NDArray[Any]  # (H, W) or (H, W, C), as in OpenCV
Resize = Literal["squash", "aligned", "crop"]  # method that makes a picture a square
UNREADABLE = (OSError, Undecodable)  # errors of reading a picture, from the disk and from the decoder


def read_picture(path: Path, resolution: int | None = None, intensity: Intensity = FULL) -> Picture:
    """Read a picture file as (H, W, 3) uint8 RGB, as a viewer shows it. With `resolution`, squash it to that many pixels a side (bicubic).

    `intensity` is the range of pictures of more than 8 bits. Raises Undecodable or OSError.
    """
    picture = to_picture(decode(path.read_bytes()), intensity)
    return picture if resolution is None else squashed(picture, resolution)


def squashed(picture: Picture, side: int) -> Picture:
    """Squash a picture to a square of `side` pixels (bicubic)."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def cropped(picture: Picture, side: int) -> Picture:
    """Resize the shorter side to `side` pixels (bicubic) and crop the middle square, like torchvision's Resize and CenterCrop."""
    height, width = picture.shape[:2]
    sizes = [side if edge == min(height, width) else int(side * edge / min(height, width)) for edge in (width, height)]
    image = Image.fromarray(picture).resize((sizes[0], sizes[1]), Image.Resampling.BICUBIC)
    left, top = (round((edge - side) / 2) for edge in image.size)
    return np.array(image.crop((left, top, left + side, top + side)))


def read_marks(path: Path) -> Mask:
    """Read a mask file at its size: (H, W), True for marked pixels. Raises Undecodable or OSError."""
    return marks_of(decode(path.read_bytes()))[0]


def read_mask(path: Path, resolution: int) -> Mask:
    """Read a mask file and resize it as `reduced` does. Raises Undecodable or OSError."""
    return reduced(read_marks(path), resolution)


def read_objects(path: Path) -> tuple[NDArray[Any], bool]:
    """Read the object numbers in a mask file, (H, W), and return whether they are palette indices. Otherwise they are grey levels.

    A blurred mask is one object. Raises Undecodable or OSError.
    """
    content = path.read_bytes()
    decoded = decode(content)
    values = decoded.samples if decoded.samples.ndim == 2 else decoded.samples.max(axis=2)
    with open_image(io.BytesIO(content)) as image:
        if image.mode == "P":
            return np.asarray(image), True
    mask, note = marked(values, lossy=decoded.lossy)
    return (mask if note else values), False


def reduced(mask: Mask, resolution: int) -> Mask:
    """Resize a mask (H, W) to `resolution` pixels a side.

    A pixel is True if any mask pixel that it covers is True, so no region vanishes. Enlarging takes the nearest pixel.
    """
    for axis in (0, 1):
        side = mask.shape[axis]
        places = np.arange(resolution)
        if side <= resolution:
            mask = mask.take((2 * places + 1) * side // (2 * resolution), axis)
        else:
            counts = np.cumsum(mask, axis, dtype=np.int32)
            counts = np.insert(counts, 0, 0, axis)
            starts, stops = places * side // resolution, -(-(places + 1) * side // resolution)
            mask = counts.take(stops, axis) > counts.take(starts, axis)
    return mask


def picture_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture file in pixels, as a viewer shows it. If possible, only the header is read."""
    try:
        with path.open("rb") as stream, open_image(stream) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return (image.width, image.height) if turned else (image.height, image.width)
    except UnidentifiedImageError:
        return decode(path.read_bytes()).size


def png(array: NDArray[np.uint8] | Mask) -> bytes:
    """Encode a picture (H, W, 3), a grey picture (H, W) or a mask (H, W) as PNG. Masks hold 0 and 255."""
    stream = io.BytesIO()
    pixels = array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array
    # Level 1 takes a tenth of the time of level 6, for files a few percent larger. Pairs are read once or twice.
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
