"""Reads pictures as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.common.pictures import Mask, Picture, Resize, cropped, read_marks, read_picture, squashed
from tasks.common.places import place_of


def read_tensors(images: Sequence[str], resolution: int, device: torch.device, resize: Resize = "squash") -> Tensor:
    """Reads pictures as Bx3xHxW float32 in [0, 1], `resolution` pixels a side: the one way from pictures to what networks take."""
    return torch.cat([squared(read_picture(place_of(image)), resolution, device, resize) for image in images])


def squared(picture: Picture, resolution: int, device: torch.device, resize: Resize = "squash") -> Tensor:
    """Makes a picture a square of `resolution` pixels a side: 1x3xHxW float32 in [0, 1]."""
    if resize == "aligned":
        return aligned(_tensor(picture, device), resolution)
    return _tensor(cropped(picture, resolution) if resize == "crop" else squashed(picture, resolution), device)


def aligned(pictures: Tensor, side: int) -> Tensor:
    """Brings BxCxHxW to that many pixels a side: bilinear, the corners' pixels stay in the corners, and nothing is averaged where it
    shrinks. So the code of MetaUAS reads pictures."""
    return F.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=True)


def read_mask_as_published(path: Path, resolution: int) -> Mask:
    """Reads a mask as the code of MetaUAS does: resized as its pictures are, and True wherever anything of it is left."""
    marks = torch.from_numpy(read_marks(path)).float()
    return aligned(marks[None, None], resolution)[0, 0].numpy() > 0


def uncropped(maps: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Lays maps Bxhxw of cropped pictures into the whole pictures they are of, Bxhxw; what was cropped away gets 0. sizes: of the pictures,
    height and width."""
    if all(height == width for height, width in sizes):
        return maps
    stretch = torch.tensor([[width / min(height, width), height / min(height, width)] for height, width in sizes])
    affine = torch.diag_embed(stretch)  # from places in the whole to those in the middle, both in [-1, 1]
    affine = torch.cat([affine, torch.zeros(len(maps), 2, 1)], dim=2).to(maps)
    grid = F.affine_grid(affine, [len(maps), 1, *maps.shape[-2:]], align_corners=False)
    laid = F.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    return laid * (grid.abs() <= 1).all(dim=-1)


def _tensor(picture: Picture, device: torch.device) -> Tensor:
    """Turns HxWx3 of uint8 into 1x3xHxW in [0, 1]."""
    return torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float().div_(255)
