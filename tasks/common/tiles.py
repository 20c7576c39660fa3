"""Cut large pictures into overlapping tiles, and join the maps of the tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.bounds import Bound
from changepair.tasks.common.pictures import Resize

LARGE = 2048  # longer side in pixels up to which `auto` leaves a picture whole
SIDE = 1024  # largest side, in pixels, of a tile that `auto` chooses, without the overlap
OVERLAP = 0.125  # share of a tile's side by which it extends into each neighbour, so that no defect lies only on a seam
MOST = 64  # largest number of rows or columns that a setting may ask for
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class OfTiles(Bound):
    """A setting that is `auto` or [rows, columns]."""

    def __str__(self) -> str:
        return f"each from 1 to {MOST}"

    def check(self, value: Any) -> Any:
        """Return `auto` or a tuple of two numbers. Raises ValueError for anything else."""
        if value == AUTO:
            return AUTO
        if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(count) is int and 1 <= count <= MOST for count in value):
            return tuple(value)
        raise ValueError(f"auto, or [rows, columns] of 1 to {MOST} each, not {value!r}")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.check)  # pydantic would report an error for each type of the union


Tiles = Annotated[Literal["auto"] | tuple[int, int], OfTiles()]  # grid that a detector cuts pictures by: `auto`, or [rows, columns]


class Grid(NamedTuple):
    """Rows and columns of the tiles of a picture. (1, 1) leaves it whole."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        return self.rows * self.columns


class Box(NamedTuple):
    """A part of a picture in pixels. Bottom and right are excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


WHOLE = Grid(1, 1)


def grid_of(tiles: Tiles, prompts: Iterable[tuple[int, int]]) -> Grid:
    """Choose the grid that a detector's prompts and queries are cut by.

    `tiles` is the detector's setting. `prompts` are each prompt's height and width in pixels. `auto` takes the most rows and columns that
    `grid_for` chooses for any prompt. Without prompts pictures stay whole.

    >>> grid_of("auto", [(3000, 4000), (4000, 3000)]), grid_of("auto", []), grid_of((1, 1), [(3000, 4000)])
    (Grid(rows=4, columns=4), Grid(rows=1, columns=1), Grid(rows=1, columns=1))
    """
    if tiles != AUTO:
        return Grid(*tiles)
    grids = [grid_for(height, width) for height, width in prompts] or [WHOLE]
    return Grid(max(grid.rows for grid in grids), max(grid.columns for grid in grids))


def grid_for(height: int, width: int) -> Grid:
    """Choose the grid of a picture from its size in pixels: WHOLE up to LARGE, else tiles of at most SIDE pixels a side.

    >>> grid_for(3000, 4000)
    Grid(rows=3, columns=4)
    """
    if max(height, width) <= LARGE:
        return WHOLE
    return Grid(math.ceil(height / SIDE), math.ceil(width / SIDE))


def boxes(size: Sequence[int], grid: Grid) -> list[Box]:
    """List the tiles of a picture, row by row. `size` is its height and width in pixels.

    Tiles cover the picture and overlap. In pictures of different sizes, a tile is at the same relative position.

    >>> boxes((100, 200), Grid(1, 2))
    [Box(top=0, left=0, bottom=100, right=113), Box(top=0, left=87, bottom=100, right=200)]
    """
    rows, columns = (_spans(side, count) for side, count in zip(size, grid, strict=True))
    return [Box(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _spans(side: int, count: int) -> list[tuple[int, int]]:
    margin = OVERLAP * side / count if count > 1 else 0.0
    edges = [side * place / count for place in range(count + 1)]
    return [(max(0, math.floor(start - margin)), min(side, math.ceil(end + margin))) for start, end in pairwise(edges)]


def seams(place: int, grid: Grid, resize: Resize) -> tuple[float, float, float, float]:
    """Return the width of the seams at a tile's top, left, bottom and right, as shares of its height or width.

    A seam is the outer half of an overlap. The neighbour shows the same pixels farther from its own side. It is 0 where the picture ends,
    and with `resize: crop`, because a detector then sees only the middle of a tile. `place` is the index of the tile, row by row.

    >>> seams(1, Grid(1, 2), "squash"), round(seams(1, Grid(1, 3), "squash")[1], 6)
    ((0.0, 0.05555555555555555, 0.0, 0.0), 0.05)
    """
    row, column = divmod(place, grid.columns)
    (top, bottom), (left, right) = (_seams(number, count) for number, count in zip((row, column), grid, strict=True))
    return (0.0, 0.0, 0.0, 0.0) if resize == "crop" else (top, left, bottom, right)


def _seams(number: int, count: int) -> tuple[float, float]:
    inside = number > 0, number < count - 1
    low, high = (OVERLAP / 2 / (1 + OVERLAP * sum(inside)) * one for one in inside)
    return low, high


def joined(maps: Sequence[NDArray[np.float32]], places: Sequence[Box], height: int, width: int) -> NDArray[np.float32]:
    """Join the maps of tiles to maps (..., H, W) of the picture. Each map (..., h, w) has the size of its box.

    Overlapping tiles are averaged with weights that fall linearly towards the edge of a tile.
    """
    if len(maps) == 1:
        return maps[0]
    total, weight = np.zeros((*maps[0].shape[:-2], height, width), np.float32), np.zeros((height, width), np.float32)
    for part, box in zip(maps, places, strict=True):
        rows, columns = (_ramp(side) for side in box.size)
        ramp = np.minimum(rows[:, None], columns[None])
        inside = np.s_[..., box.top : box.bottom, box.left : box.right]
        total[inside] += part * ramp
        weight[inside] += ramp
    total /= weight
    return total


def _ramp(side: int) -> NDArray[np.float32]:
    """Return the weights of the pixels along a tile's side. They rise from each end to 1, where no other tile overlaps."""
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    return np.minimum(distance / max(1.0, 2 * OVERLAP * side / (1 + 2 * OVERLAP)), 1.0).astype(np.float32)
