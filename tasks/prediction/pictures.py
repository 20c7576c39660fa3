"""Takes pictures as a user has them (paths, PIL images, arrays, tensors) and gives them as HxWx3 uint8, RGB; refuses what is none."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tasks.common.errors import BadInput
from tasks.common.pictures import FORMATS, UNDECODABLE, Picture, as_rgb, open_image

MOST_PIXELS = 100_000_000
"""Of a picture; a bomb is larger. One of so many takes 0.3 GB as it is read, and 0.8 GB as it is scored."""

PictureLike: TypeAlias = str | Path | bytes | Image.Image | NDArray[Any] | torch.Tensor
"""A path, a file's bytes, a PIL image, an array HxW or HxWx3 (uint8, or float in [0, 1]), a tensor HxW or 3xHxW (the same)."""


def as_picture(given: PictureLike, name: str = "picture") -> Picture:
    """Gives a picture as HxWx3 uint8 RGB, turned as its EXIF says.

    >>> as_picture(np.full((2, 3), 0.5)).shape, as_picture(np.full((2, 3), 0.5))[0, 0].tolist()
    ((2, 3, 3), [128, 128, 128])
    >>> as_picture(torch.zeros(3, 4, 5)).shape
    (4, 5, 3)

    name: what it is called in the error. Raises BadInput if it cannot be read, is too large, or has other values than it may.
    """
    if isinstance(given, (str, Path)):
        return _decoded(Path(given), str(given))
    if isinstance(given, (bytes, bytearray)):
        return _decoded(io.BytesIO(given), name)
    if isinstance(given, Image.Image):
        return np.array(as_rgb(given.copy()))
    if isinstance(given, torch.Tensor):
        array = given.detach().cpu().numpy()
        return _of_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, name)
    if isinstance(given, np.ndarray):
        return _of_array(given, name)
    raise BadInput(f"{name}: a {type(given).__name__} is no picture; give a path, bytes, a PIL image, an array or a tensor")


def _decoded(source: Path | io.BytesIO, name: str) -> Picture:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # at half of what Pillow refuses; ours comes first
            warnings.simplefilter("ignore", UserWarning)  # of metadata
            with open_image(source) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadInput(f"{name}: {image.width}x{image.height} pixels, more than {MOST_PIXELS:,}; make it smaller, or cut it")
                return np.array(as_rgb(image))
    except FileNotFoundError as error:
        raise BadInput(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise BadInput(f"{name}: is a folder, not a picture") from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{name}: not a picture of a kind that is read here ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput(f"{name}: more than {MOST_PIXELS:,} pixels; make it smaller, or cut it") from error
    except UNDECODABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{name}: cannot be read ({reason}); it may be truncated, so copy it again") from error


def _of_array(array: NDArray[Any], name: str) -> Picture:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise BadInput(f"{name}: of shape {tuple(array.shape)}; an array is HxW or HxWx3, a tensor HxW or 3xHxW")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise BadInput(f"{name}: numbers with a point are from 0 to 1, these from {array.min():g} to {array.max():g}")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise BadInput(f"{name}: of {array.dtype}; pixels are uint8, or float from 0 to 1")
    return np.ascontiguousarray(array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2))


def is_one(given: Any) -> bool:
    """Tells whether what is given is one picture, and not several. A tensor or array of four axes is several, one of three is one."""
    if isinstance(given, (torch.Tensor, np.ndarray)):
        return given.ndim < 4
    return isinstance(given, (str, Path, bytes, bytearray, Image.Image))


def as_list(given: PictureLike | Iterable[PictureLike]) -> list[Any]:
    """Gives one picture or several as a list."""
    return [given] if is_one(given) else list(given)  # type: ignore[arg-type]
