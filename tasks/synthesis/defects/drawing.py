"""Draw shapes and lay them over a picture. The mask holds exactly the pixels that were laid over.

Opacities are (H, W) float32 in [0, 1]. Positions and lengths are in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.synthesis.objects import Dropped
from changepair.tasks.synthesis.perlin import perlin_noise

Opacity = NDArray[np.float32]
Levels = NDArray[Any]  # (H, W, 3) levels of 255, not yet rounded or clipped
Points = NDArray[np.float64]  # (N, 2), x and y

FAINT = 1 / 16  # lower opacities are 0, so that the mask has no invisible rim
LEAST_VISIBLE = 6.0  # mean difference within the mask, in levels of 255, below which a draw is dropped
SUBPIXELS = 4  # binary digits of a coordinate after the point, for OpenCV
REFERENCE = 256  # side in pixels that widths of lines are given for
MOST_CELLS = 40  # of noise, a side


@dataclass(frozen=True)
class Severity:
    """Size and contrast of a defect."""

    size: float
    """Extent, as a share of the picture's side."""
    contrast: float
    """Difference from the picture, as a share of the range of levels."""


Defect = Callable[[Picture, Severity, np.random.Generator], tuple[Picture, Mask]]
"""Draws a defect into a picture (H, W, 3). It returns the picture and the mask (H, W). It raises Dropped if the picture has no place
for the defect, or if the defect would be invisible."""


def laid(picture: Picture, layer: Levels, opacity: Opacity) -> tuple[Picture, Mask]:
    """Lay a layer over a picture. Return the picture, and the mask of the pixels whose opacity is at least FAINT.

    All other pixels keep their values. Raises Dropped if nothing is covered or the mean difference within the mask is invisible.
    """
    mask = opacity >= FAINT
    before = picture[mask].astype(np.float32)
    after = np.clip(np.rint(before + opacity[mask][:, None] * (layer[mask].astype(np.float32) - before)), 0, 255)
    if not len(before) or np.abs(after - before).max(axis=1).mean(dtype=np.float64) < LEAST_VISIBLE:
        raise Dropped("defect invisible")
    changed = picture.copy()
    changed[mask] = after.astype(np.uint8)
    return changed, mask


def toned(picture: Picture, opacity: Opacity, contrast: float, rng: np.random.Generator, *, dark: float = 0.5) -> Levels:
    """Return the picture darkened or brightened by `contrast`. `dark` is the probability of darkening, if there is room for both."""
    level = 255 * contrast
    mean = cv2.mean(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (opacity >= FAINT).astype(np.uint8))[0]
    darker = rng.random() < dark
    if mean < level or mean > 255 - level:  # no room on one side
        darker = mean > 127
    return picture.astype(np.float32) - np.float32(level if darker else -level)


def offsets(side: int, centre: Sequence[float], angle: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each pixel's distance from a point along an angle and across it, (H, W) each."""
    y, x = (np.arange(side, dtype=np.float32) + np.float32(0.5) - np.float32(part) for part in (centre[1], centre[0]))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along: NDArray[np.float32] = cos * x[None, :] + sin * y[:, None]
    across: NDArray[np.float32] = cos * y[:, None] - sin * x[None, :]
    return along, across


def somewhere(side: int, rng: np.random.Generator, margin: float = 0.12) -> tuple[float, float]:
    """Draw a point that is at least `margin` of the side from the border."""
    x, y = rng.uniform(margin * side, (1 - margin) * side, size=2)
    return float(x), float(y)


def turned(rng: np.random.Generator) -> float:
    """Draw an angle in radians."""
    return float(rng.uniform(0, 2 * np.pi))


def noise(side: int, cells: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw Perlin noise in about [-1, 1] with a number of cells a side, (side, side)."""
    count = int(min(max(cells, 1), MOST_CELLS))
    samples = min(side, 6 * count)
    steps = (np.arange(samples, dtype=np.float32) + np.float32(0.5)) * np.float32(count / samples)
    found = perlin_noise(np.repeat(steps[:, None], samples, axis=1), np.repeat(steps[None], samples, axis=0), rng)
    return found if samples == side else cv2.resize(found, (side, side), interpolation=cv2.INTER_CUBIC)


def blob(
    side: int,
    centre: Sequence[float],
    radius: float,
    rng: np.random.Generator,
    *,
    rough: float = 0.5,
    stretch: float = 1.0,
    angle: float = 0.0,
    soft: float = 1.5,
) -> Opacity:
    """Draw an irregular spot. `rough` is the depth of its bays as a share of the radius, and `soft` the width of its edge in pixels.

    `stretch` is its length along `angle` divided by its width.
    """
    along, across = offsets(side, centre, angle)
    distance = np.sqrt((along / np.float32(stretch)) ** 2 + across**2) / np.float32(radius)
    inside = 1 - distance + (np.float32(rough) * noise(side, 1.5 * side / radius, rng) if rough else 0)
    return np.clip(inside * np.float32(radius / soft) + np.float32(0.5), 0, 1)


def strokes(side: int, lines: Sequence[tuple[Points, float]]) -> Opacity:
    """Draw smooth lines. Each has points and a width; a width below a pixel becomes a lower opacity."""
    drawn = np.zeros((side, side), dtype=np.uint8)
    for points, width in lines:
        places = np.rint(points * 2**SUBPIXELS).astype(np.int32)[:, None]
        value = round(255 * min(1.0, width))
        layer = np.zeros_like(drawn)
        cv2.polylines(
            layer, [places], isClosed=False, color=(value,), thickness=max(1, round(width)), lineType=cv2.LINE_AA, shift=SUBPIXELS
        )
        drawn = np.maximum(drawn, layer)
    return drawn.astype(np.float32) / np.float32(255)


def walk(start: Points, angle: float, length: float, wander: float, step: float, rng: np.random.Generator) -> Points:
    """Walk `length` pixels in steps. Each step turns by a normal angle with the standard deviation `wander` in radians."""
    angles = angle + np.cumsum(rng.normal(0, wander, max(2, round(length / step))))
    moves = step * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points: Points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    return points


def started(side: int, angle: float, length: float, rng: np.random.Generator) -> Points:
    """Draw where a line of this angle and length starts, so that its middle is in the picture."""
    x, y = somewhere(side, rng)
    return np.array([x - 0.5 * length * np.cos(angle), y - 0.5 * length * np.sin(angle)])
