"""Cuts large pictures into tiles that overlap, and joins the maps of tiles to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGE = 2048
"""Pixels of the longer side; what is larger is cut, unless it is asked otherwise."""
SIDE = 1024
"""Pixels of a tile's side, at most, where the grid follows from a picture's size."""
OVERLAP = 0.125
"""How far a tile reaches into its neighbours, in shares of its own side, so that no defect lies on a seam only."""


class Grid(NamedTuple):
    """How many tiles a picture is cut into; (1, 1) leaves it whole."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        return self.rows * self.columns


class Box(NamedTuple):
    """A part of a picture, in pixels; bottom and right excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


WHOLE = Grid(1, 1)


def grid_for(height: int, width: int) -> Grid:
    """Chooses the grid of a picture by its size: WHOLE up to LARGE, else tiles of at most SIDE pixels a side.

    >>> grid_for(3000, 4000)
    Grid(rows=3, columns=4)
    """
    if max(height, width) <= LARGE:
        return WHOLE
    return Grid(math.ceil(height / SIDE), math.ceil(width / SIDE))


def boxes(size: Sequence[int], grid: Grid) -> list[Box]:
    """Lists the tiles of a picture of that height and width, row by row. They cover it and overlap; every picture of one grid has its
    tiles at the same places, in shares of its sides.

    >>> boxes((100, 200), Grid(1, 2))
    [Box(top=0, left=0, bottom=100, right=113), Box(top=0, left=87, bottom=100, right=200)]
    """
    rows, columns = (_spans(side, count) for side, count in zip(size, grid, strict=True))
    return [Box(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _spans(side: int, count: int) -> list[tuple[int, int]]:
    margin = OVERLAP * side / count if count > 1 else 0.0
    return [
        (max(0, math.floor(side * place / count - margin)), min(side, math.ceil(side * (place + 1) / count + margin)))
        for place in range(count)
    ]


def joined(maps: Sequence[NDArray[np.float32]], places: Sequence[Box], height: int, width: int) -> NDArray[np.float32]:
    """Joins maps of tiles, each of its box's size, to one of the picture, HxW. Where tiles overlap each counts the less the nearer its
    rim is."""
    if len(maps) == 1:
        return maps[0]
    total, weight = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for part, box in zip(maps, places, strict=True):
        rows, columns = (_ramp(side) for side in box.size)
        ramp = np.minimum(rows[:, None], columns[None])
        inside = np.s_[box.top : box.bottom, box.left : box.right]
        total[inside] += part * ramp
        weight[inside] += ramp
    total /= weight
    return total


def _ramp(side: int) -> NDArray[np.float32]:
    """Rises from each end of a tile's side to 1 where no other tile reaches."""
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    return np.minimum(distance / max(1.0, 2 * OVERLAP * side / (1 + 2 * OVERLAP)), 1.0).astype(np.float32)
