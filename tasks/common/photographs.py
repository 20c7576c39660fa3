"""Read photographs when they are needed, and cut squares from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Mask, Picture, Pixels, read_picture
from changepair.tasks.common.places import place_of
from changepair.tasks.common.randomness import generator

KEPT = 2**28  # bytes of decoded pictures that a process caches, so that memory does not grow with their number
LONGEST_SIDE = 2048  # pixels; a larger photograph is reduced to this once, which limits memory and keeps the detail that a square needs
ROOM = 0.08  # space left free around an object, as a share of its longer side


@dataclass(frozen=True)
class Square:
    """A square of a photograph, in shares of its width (left, width) and height (top, height)."""

    left: float
    top: float
    width: float
    height: float
    flipped: bool


@dataclass(frozen=True)
class Box:  # on a photograph, in shares of its width and height
    left: float
    top: float
    right: float
    bottom: float


class Photographs:
    """Draws squares from photographs, given by their paths. A small cache in the process keeps decoded pictures.

    `crop` is the smallest and largest side of a square, as shares of the photograph's shorter side. `resolution` is the side in pixels of a
    cut square.
    """

    def __init__(self, images: Sequence[str], crop: tuple[float, float], resolution: int) -> None:
        self.images, self.crop, self.resolution = tuple(images), crop, resolution

    def parted(self, share: float) -> tuple[Photographs, Photographs]:
        """Split the photographs into those to train on and a share to measure on, by their number alone. Fewer than four serve as both."""
        count = min(max(2, round(share * len(self.images))), len(self.images) // 2)
        if share == 0 or count < 2:
            return self, self
        apart = set(generator(0, "held out photographs").permutation(len(self.images))[:count].tolist())
        rest, measured = ([image for place, image in enumerate(self.images) if (place in apart) == side] for side in (False, True))
        return Photographs(rest, self.crop, self.resolution), Photographs(measured, self.crop, self.resolution)

    def choose(self, rng: np.random.Generator, but: int | None = None) -> int:
        """Draw a photograph's index. It differs from `but`, unless there is only one photograph."""
        if but is None or len(self.images) == 1:
            return int(rng.integers(len(self.images)))
        return (but + 1 + int(rng.integers(len(self.images) - 1))) % len(self.images)

    def draw(self, rng: np.random.Generator) -> tuple[int, Picture]:
        """Draw a square (resolution, resolution, 3) of a random photograph. Return the photograph's index first."""
        index = self.choose(rng)
        return index, self.cut(index, self.square(index, rng))

    def square(self, index: int, rng: np.random.Generator) -> Square:
        height, width = _photo(self.images[index]).shape[:2]
        side = int(rng.uniform(*self.crop) * min(width, height))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        return Square(left / width, top / height, side / width, side / height, bool(rng.random() < 0.5))

    def squares_apart(self, index: int, rng: np.random.Generator) -> tuple[Square, Square]:
        """Draw two disjoint squares of the same size from a photograph, next to or above each other."""
        height, width = _photo(self.images[index]).shape[:2]
        low, high = self.crop
        side = max(1, int(rng.uniform(low / 2, high / 2) * min(width, height)))
        across = bool(rng.random() < 0.5)
        corners = []
        for half in (0, 1):
            long, short = (width, height) if across else (height, width)
            along = half * (long - long // 2) + int(rng.integers(long // 2 - side + 1))
            other = int(rng.integers(short - side + 1))
            corners.append((along, other) if across else (other, along))
        flipped = bool(rng.random() < 0.5)
        first, second = (Square(left / width, top / height, side / width, side / height, flipped) for left, top in corners)
        return first, second

    def square_around(self, index: int, box: Box, covers: float, area: tuple[float, float], rng: np.random.Generator) -> Square | None:
        """Draw a square that holds an object's box with some space around it. Return None if there is no such square.

        `covers` is the object's share of the photograph. `area` is the smallest and largest share of the square that it may cover.
        """
        height, width = _photo(self.images[index]).shape[:2]
        pixels = covers * width * height
        left, top, right, bottom = box.left * width, box.top * height, box.right * width, box.bottom * height
        room = ROOM * max(right - left, bottom - top)
        smallest = max(self.crop[0] * min(width, height), max(right - left, bottom - top) + 2 * room, (pixels / area[1]) ** 0.5)
        largest = min(self.crop[1] * min(width, height), (pixels / max(area[0], 1e-9)) ** 0.5)
        if smallest > largest:
            return None
        side = rng.uniform(smallest, largest)
        corner = []
        for low, high, length in ((left, right, width), (top, bottom, height)):
            first, last = max(0.0, high + room - side), min(length - side, low - room)
            # An object near the photograph's edge has less space.
            corner.append(rng.uniform(first, last) if first < last else min(max(0.0, (low + high - side) / 2), length - side))
        return Square(corner[0] / width, corner[1] / height, side / width, side / height, bool(rng.random() < 0.5))

    def cut(self, index: int, square: Square) -> Picture:
        """Cut the square as a picture (resolution, resolution, 3)."""
        return self._cut(_photo(self.images[index]), square)

    def cut_mask(self, mask: Mask, square: Square) -> Mask:
        """Cut the square (resolution, resolution) from a mask with the photograph's aspect ratio, at any size."""
        return self._cut(mask.astype(np.uint8) * 255, square) > 127

    def _cut(self, pixels: Pixels, square: Square) -> Pixels:
        height, width = pixels.shape[:2]
        top, left = round(square.top * height), round(square.left * width)
        inside = pixels[top : round((square.top + square.height) * height), left : round((square.left + square.width) * width)]
        # INTER_AREA averages over the area that a pixel covers.
        method = cv2.INTER_AREA if min(inside.shape[:2]) >= self.resolution else cv2.INTER_CUBIC
        cut = cv2.resize(inside, (self.resolution, self.resolution), interpolation=method)
        return cv2.flip(cut, 1) if square.flipped else cut


_photos: OrderedDict[str, Picture] = OrderedDict()  # decoded pictures, most recently used last


def _photo(image: str) -> Picture:
    if image not in _photos:
        _photos[image] = _read(image)
        while len(_photos) > 1 and sum(photo.nbytes for photo in _photos.values()) > KEPT:
            _photos.popitem(last=False)
    _photos.move_to_end(image)
    return _photos[image]


def _read(image: str) -> Picture:
    try:
        photo = Image.fromarray(read_picture(place_of(image)))
    except OSError as error:
        wrong = f"this ingested source picture can no longer be read ({error})"
        raise BadInput(f"{image}: {wrong}; run the ingest stage again") from error
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(photo)
