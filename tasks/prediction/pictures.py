"""Convert a user's pictures (paths, bytes, PIL images, arrays, tensors) to HxWx3 uint8 RGB."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from changepair.tasks.common.decoding import FULL, Decoded, Intensity, Undecodable, decode, of_image, refuse_large, to_picture
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Picture

PictureLike: TypeAlias = str | Path | bytes | Image.Image | NDArray[Any] | torch.Tensor | Decoded
"""A path, the bytes of a file, a Decoded, a PIL image, an array HxW or HxWx3, or a tensor HxW or 3xHxW. Arrays and tensors are uint8, or of
another type with samples of more than 8 bits. Floats are in [0, 1] unless an intensity range is given."""


def as_picture(given: PictureLike, name: str = "picture", intensity: Intensity = FULL) -> Picture:
    """Convert a picture to HxWx3 uint8 RGB. Its EXIF orientation is applied.

    >>> as_picture(np.full((2, 3), 0.5)).shape, as_picture(np.full((2, 3), 0.5))[0, 0].tolist()
    ((2, 3, 3), [128, 128, 128])
    >>> as_picture(torch.zeros(3, 4, 5)).shape
    (4, 5, 3)

    name: its name in error messages. intensity: the range of pictures of more than 8 bits. Raises BadInput if the picture cannot be read,
    is too large, or has invalid values.
    """
    return scaled(as_decoded(given, name), name, intensity)


def scaled(decoded: Decoded, name: str, intensity: Intensity) -> Picture:
    """Convert a decoded picture as `as_picture`. Raises BadInput if it does not fit the range."""
    try:
        return to_picture(decoded, intensity)
    except Undecodable as error:
        raise BadInput(f"{name}: {error}") from error


def as_decoded(given: PictureLike, name: str = "picture") -> Decoded:
    """Decode a picture. Raises BadInput as `as_picture`."""
    name = str(given) if isinstance(given, (str, Path)) else name
    if isinstance(given, Decoded):
        return given
    try:
        if isinstance(given, (str, Path)):
            return decode(Path(given).read_bytes())
        if isinstance(given, (bytes, bytearray)):
            return decode(bytes(given))
        if isinstance(given, Image.Image):
            refuse_large(*given.size)
            return of_image(given)
    except FileNotFoundError as error:
        raise BadInput(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise BadInput(f"{name}: is a folder, not a picture") from error
    except Undecodable as error:
        raise BadInput(f"{name}: {error}; copy it again, or write it as PNG") from error
    except OSError as error:
        raise BadInput(f"{name}: cannot be read ({error.strerror or error})") from error
    if isinstance(given, torch.Tensor):
        array = given.detach().cpu().numpy()
        return _of_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, name)
    if isinstance(given, np.ndarray):
        return _of_array(given, name)
    raise BadInput(f"{name}: {type(given).__name__} is not a picture; give a path, bytes, a PIL image, an array or a tensor")


def _of_array(array: NDArray[Any], name: str) -> Decoded:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise BadInput(f"{name}: invalid shape {tuple(array.shape)}; give an array HxW or HxWx3, or a tensor HxW or 3xHxW")
    if array.dtype.kind not in "uif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise BadInput(f"{name}: invalid values of type {array.dtype}; give finite floats, uint8 or other integers")
    if array.dtype == np.uint8:
        array = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
    return Decoded(np.ascontiguousarray(array))


def as_list(given: PictureLike | Iterable[PictureLike]) -> list[Any]:
    """Return one picture or several as a list. A tensor or array with four axes is several pictures, otherwise one."""
    if isinstance(given, (torch.Tensor, np.ndarray)):
        return [given] if given.ndim < 4 else list(given)
    return [given] if isinstance(given, (str, Path, bytes, bytearray, Image.Image, Decoded)) else list(given)
