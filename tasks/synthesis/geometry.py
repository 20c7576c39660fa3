"""Draws and applies small affine maps: a real prompt is never registered with its query."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.pictures import Mask, Picture, Pixels
from changepair.tasks.synthesis.settings import AugmentationSettings

Affine = tuple[float, float, float, float, float, float]  # of output to input, row by row, in pixels from the first pixel's corner


def small_affine(size: int, settings: AugmentationSettings, rng: np.random.Generator) -> Affine:
    """Draw a rotation, shear, zoom and shift about the centre, within the settings."""
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
    """Warp a picture bilinearly. Outside of it is its mirror image."""
    return _warp(picture, affine)


def warp_mask(mask: Mask, affine: Affine) -> Mask:
    """Warp a mask as its picture. A pixel is in the mask if most of it is."""
    return _warp(mask.astype(np.uint8) * 255, affine) > 127


def shown(affine: Affine, size: int) -> Mask:
    """Mark on the input's grid, size x size, what the output of a map shows of it."""
    return cv2.warpAffine(np.full((size, size), 255, np.uint8), _centred(affine), (size, size)) > 127


def _warp(pixels: Pixels, affine: Affine) -> Pixels:
    return cv2.warpAffine(
        pixels, _centred(affine), pixels.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )


def _centred(affine: Affine) -> NDArray[np.float64]:
    """Return the map as OpenCV counts: from the centre of the first pixel, not from its corner."""
    a, b, c, d, e, f = affine
    return np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
