"""The photographs that pairs are made from, read as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.errors import BadInput
from tasks.pictures import Picture, read_picture

KEPT = 16  # decoded pictures kept, so that memory does not grow with their number
LONGEST_SIDE = 2048  # pixels; a larger photograph is reduced to this once, which bounds memory and loses nothing a crop needs


class Sources:
    """Draws square crops from photographs. Holds paths only; decoded pictures are kept by a small cache of the process."""

    def __init__(self, images: Sequence[str], crop: tuple[float, float], resolution: int) -> None:
        self.images = tuple(images)
        self.crop = crop
        self.resolution = resolution

    def draw(self, rng: np.random.Generator) -> tuple[int, Picture]:
        """A random square of a random photograph, resolution x resolution x 3, and the photograph's index."""
        index = int(rng.integers(len(self.images)))
        return index, self._crop(index, rng)

    def draw_other(self, index: int, rng: np.random.Generator) -> Picture:
        """A random square of another photograph than `index`; of the same one if there is only one."""
        if len(self.images) == 1:
            return self._crop(index, rng)
        return self._crop((index + 1 + int(rng.integers(len(self.images) - 1))) % len(self.images), rng)

    def _crop(self, index: int, rng: np.random.Generator) -> Picture:
        photo = _photo(self.images[index])
        side = int(rng.uniform(*self.crop) * min(photo.size))
        left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
        square = photo.resize(
            (self.resolution, self.resolution), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=2.0
        )
        if rng.random() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(square)


@lru_cache(maxsize=KEPT)
def _photo(image: str) -> Image.Image:
    try:
        photo = Image.fromarray(read_picture(Path(image)))
    except OSError as error:
        raise BadInput(
            f"{image}: a source picture that was ingested cannot be read any more ({error}); run the ingest stage again"
        ) from error
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    return photo
