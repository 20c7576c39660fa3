"""Small affine maps: a real prompt is never registered with its query."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tasks.pictures import Mask, Picture
from tasks.synthesis.settings import AugmentationSettings

Affine = tuple[float, float, float, float, float, float]  # output pixel -> input pixel, as Pillow takes it


def small_affine(size: int, settings: AugmentationSettings, rng: np.random.Generator) -> Affine:
    """A random rotation, shear, zoom and shift about the centre, within the settings."""
    angle = np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))
    shear = np.tan(np.deg2rad(rng.uniform(-settings.shear, settings.shear)))
    zoom = 1 + rng.uniform(-settings.zoom, settings.zoom)
    shift = rng.uniform(-settings.shift, settings.shift, size=2) * size
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) / zoom
    centre = np.array([size / 2, size / 2])
    offset = centre - matrix @ (centre + shift)
    return (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])


def warp_picture(picture: Picture, affine: Affine) -> Picture:
    """Bilinear; what lies outside the picture is its mirror image."""
    return _warp(picture, affine, Image.Resampling.BILINEAR)


def warp_mask(mask: Mask, affine: Affine) -> Mask:
    """Nearest neighbour, mirrored like the picture it belongs to."""
    return _warp(mask.astype(np.uint8), affine, Image.Resampling.NEAREST) > 0


def _warp(array: np.ndarray, affine: Affine, resampling: Image.Resampling) -> np.ndarray:
    size = array.shape[0]
    margin = size // 3
    padding = ((margin, margin), (margin, margin)) + ((0, 0),) * (array.ndim - 2)
    padded = Image.fromarray(np.pad(array, padding, mode="symmetric"))
    a, b, c, d, e, f = affine
    return np.asarray(padded.transform((size, size), Image.Transform.AFFINE, (a, b, c + margin, d, e, f + margin), resampling))
