"""Join the scores and maps of tiles to those of pictures, as the score artifact stores them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from changepair.tasks.common.tensors import joined_maps, resized_maps
from changepair.tasks.common.tiles import OVERLAP, WHOLE, Grid

CELLS = 64
"""Cells a side of a tile on a stored map; more if the whole map would be coarser than the map of a single tile."""
MOST_CELLS = 1024
"""Largest number of cells a side of a stored map."""
STEP = round(1 / OVERLAP)
"""The cells a side of a tile are a multiple of this, so the tiles of a stored map overlap by whole cells, as in the picture."""

Maps = NDArray[np.float32]


class TileResults:
    """Collects the scores and maps of a batch of pictures, tile by tile, for each episode."""

    def __init__(self) -> None:
        self.scores: dict[int, NDArray[np.float32]] = {}
        """By episode, the highest score of the tiles so far: B."""
        self._tiles: dict[int, tuple[Grid, list[Maps]]] = {}

    def add(self, number: int, grid: Grid, scores: Tensor, maps: Tensor | None) -> None:
        """Add an episode's next tile: scores B, and maps Bxhxw if they are kept."""
        found = scores.float().cpu().numpy()
        self.scores[number] = np.maximum(self.scores[number], found) if number in self.scores else found
        if maps is not None:
            self._tiles.setdefault(number, (grid, []))[1].append(maps.float().cpu().numpy())

    def maps(self) -> dict[int, Maps]:
        """Return the joined maps by episode: BxHxW, of the same size for all episodes."""
        whole = {number: stored_map(tiles, grid) for number, (grid, tiles) in self._tiles.items()}
        size = [max((maps.shape[axis] for maps in whole.values()), default=0) for axis in (1, 2)]
        return {number: resized_maps(maps, size) for number, maps in whole.items()}


def stored_map(tiles: Sequence[Maps], grid: Grid) -> Maps:
    """Join the maps Bxhxw of a grid's tiles to maps BxHxW. A whole picture's map is returned unchanged."""
    if grid == WHOLE:
        return tiles[0]
    height, width = (_cells(side, count) for side, count in zip(tiles[0].shape[1:], grid, strict=True))
    return joined_maps(tiles, grid, height, width, antialias=True)


def _cells(side: int, count: int) -> int:
    """Return the cells a side of a stored map of `count` tiles, whose own maps have `side` cells each."""
    wanted = math.ceil(max(CELLS, side / count) / STEP)
    return count * STEP * min(wanted, MOST_CELLS // count // STEP)
