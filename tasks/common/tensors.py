"""Read pictures as tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from changepair.tasks.common.pictures import Mask, Picture, Resize, cropped, read_marks, read_picture, squashed
from changepair.tasks.common.places import place_of
from changepair.tasks.common.tiles import Box, Grid, boxes, joined

Change = Callable[[Picture], Picture]


def read_tensors(images: Sequence[str], resolution: int, device: torch.device, resize: Resize = "squash") -> Tensor:
    """Read pictures as (B, 3, H, W) float32 in [0, 1], `resolution` pixels a side."""
    return torch.cat([squared(read_picture(place_of(image)), resolution, device, resize) for image in images])


def read_tiles(
    images: Sequence[str],
    grids: Collection[Grid],
    resolution: int,
    device: torch.device,
    resize: Resize,
    changes: Sequence[Change] | None = None,
) -> tuple[dict[Grid, Tensor], list[tuple[int, int]]]:
    """Read each of B pictures once, and cut it by every grid.

    Return (T, B, 3, H, W) float32 in [0, 1] for each grid of T tiles, and each picture's height and width. Only one picture is held at full
    size. changes: applied to each decoded picture. A picture that follows itself is decoded once.
    """
    cut: dict[Grid, list[Tensor]] = {grid: [] for grid in grids}
    sizes = []
    last, decoded = "", np.empty((0, 0, 3), np.uint8)
    for number, image in enumerate(images):
        if changes is None or image != last:
            last, decoded = image, read_picture(place_of(image))
        picture = decoded if changes is None else changes[number](decoded)
        height, width = picture.shape[:2]
        sizes.append((height, width))
        for grid, tiles in cut.items():
            tiles.append(torch.cat([squared_tile(picture, box, resolution, device, resize) for box in boxes((height, width), grid)]))
    return {grid: torch.stack(tiles, dim=1) for grid, tiles in cut.items()}, sizes


def squared_tile(picture: Picture, box: Box, resolution: int, device: torch.device, resize: Resize) -> Tensor:
    """Cut a tile out of a picture and make it a square, as `squared` does: (1, 3, H, W)."""
    return squared(np.ascontiguousarray(picture[box.top : box.bottom, box.left : box.right]), resolution, device, resize)


def squared(picture: Picture, resolution: int, device: torch.device, resize: Resize = "squash") -> Tensor:
    """Make a picture a square of `resolution` pixels a side: (1, 3, H, W) float32 in [0, 1]."""
    if resize == "aligned":
        return aligned(_tensor(picture, device), resolution)
    return _tensor(cropped(picture, resolution) if resize == "crop" else squashed(picture, resolution), device)


def aligned(pictures: Tensor, side: int) -> Tensor:
    """Resize (B, C, H, W) bilinearly, with aligned corners and without antialiasing, as the code of MetaUAS does."""
    return F.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=True)


def read_mask_as_published(path: Path, resolution: int) -> Mask:
    """Read a mask as the code of MetaUAS does: resized like its pictures, and True for every value above 0."""
    marks = torch.from_numpy(read_marks(path)).float()
    return aligned(marks[None, None], resolution)[0, 0].numpy() > 0


def uncropped(maps: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Place maps (B, h, w) of cropped pictures in their whole pictures, with 0 elsewhere. `sizes` are the pictures' heights and widths."""
    if all(height == width for height, width in sizes):
        return maps
    stretch = torch.tensor([[width / min(height, width), height / min(height, width)] for height, width in sizes])
    affine = torch.diag_embed(stretch)  # from positions in the whole picture to those in the middle square, both in [-1, 1]
    affine = torch.cat([affine, torch.zeros(len(maps), 2, 1)], dim=2).to(maps)
    grid = F.affine_grid(affine, [len(maps), 1, *maps.shape[-2:]], align_corners=False)
    laid = F.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    return laid * (grid.abs() <= 1).all(dim=-1)


def joined_maps(
    tiles: Sequence[NDArray[np.float32]], grid: Grid, height: int, width: int, *, antialias: bool = False
) -> NDArray[np.float32]:
    """Join the maps (..., h, w) of a grid's tiles, row by row, to maps (..., H, W) of the picture. `antialias` averages when reducing."""
    places = boxes((height, width), grid)
    resized = [resized_maps(tile, box.size, antialias=antialias) for tile, box in zip(tiles, places, strict=True)]
    return joined(resized, places, height, width)


def resized_maps(maps: NDArray[np.float32], size: Sequence[int], *, antialias: bool = False) -> NDArray[np.float32]:
    """Resize maps (..., h, w) to (..., H, W), bilinear."""
    if maps.shape[-2:] == tuple(size):
        return maps
    stacked = torch.from_numpy(maps).reshape(-1, 1, *maps.shape[-2:])
    found = F.interpolate(stacked, tuple(size), mode="bilinear", align_corners=False, antialias=antialias)
    return found.numpy().reshape(*maps.shape[:-2], *size)


def _tensor(picture: Picture, device: torch.device) -> Tensor:
    return torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float().div_(255)
