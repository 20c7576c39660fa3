"""Draw Perlin noise, the shape of DRAEM's local changes (Perlin, "An image synthesizer", SIGGRAPH 1985)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.pictures import Mask

HIGHEST_OCTAVE = 5  # frequencies 2^0 to 2^5 a side (DRAEM, Zavrtanik et al., ICCV 2021, section 3.3)
THRESHOLD = 0.5
MOST_ROTATION = 90.0  # degrees
SAMPLES_A_CELL = 6


def perlin_mask(size: int, rng: np.random.Generator) -> Mask:
    """Draw DRAEM's mask (size, size): noise of a random frequency on each axis, rotated by up to 90 degrees either way, above 0.5."""
    frequency = 2.0 ** rng.integers(0, HIGHEST_OCTAVE + 1, size=2)
    angle = np.deg2rad(rng.uniform(-MOST_ROTATION, MOST_ROTATION))
    # Noise is smooth within its lattice. A few samples a cell describe it, and cubic interpolation is cheaper than more of them.
    samples = min(size, SAMPLES_A_CELL * int(frequency.max()))
    # The noise is a function of the plane, so it is evaluated at rotated coordinates, without resampling and without empty corners.
    centred = (np.arange(samples, dtype=np.float32) + 0.5) / samples - 0.5
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    rows: Any = (cos * centred[:, None] - sin * centred[None, :] + 0.5) * np.float32(frequency[0])
    columns: Any = (sin * centred[:, None] + cos * centred[None, :] + 0.5) * np.float32(frequency[1])
    noise = perlin_noise(rows, columns, rng)
    return (noise if samples == size else cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)) > THRESHOLD


def perlin_noise(rows: NDArray[np.float32], columns: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return noise in about [-1, 1] at lattice coordinates `rows` and `columns` (H, W). Each lattice point has a random unit gradient."""
    top, left = np.floor(rows).astype(np.int32), np.floor(columns).astype(np.int32)
    origin = top.min(), left.min()
    shape = (top.max() - origin[0] + 2, left.max() - origin[1] + 2)
    angles = rng.uniform(0, 2 * np.pi, size=shape).astype(np.float32)
    gradient_row, gradient_column = np.sin(angles).ravel(), np.cos(angles).ravel()
    down, right = rows - top, columns - left
    corner = (top - origin[0]) * shape[1] + (left - origin[1])

    def slope(row: int, column: int) -> NDArray[np.float32]:
        at = corner + (row * shape[1] + column)
        return gradient_row[at] * (down - row) + gradient_column[at] * (right - column)

    across, along = _fade(right), _fade(down)
    upper = slope(0, 0) + across * (slope(0, 1) - slope(0, 0))
    lower = slope(1, 0) + across * (slope(1, 1) - slope(1, 0))
    return np.float32(np.sqrt(2.0)) * (upper + along * (lower - upper))


def _fade(t: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 6t^5 - 15t^4 + 10t^3 (Perlin, "Improving noise", SIGGRAPH 2002)."""
    return t * t * t * (t * (t * 6 - 15) + 10)
