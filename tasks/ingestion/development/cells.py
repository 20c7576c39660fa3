"""Draw solar cells as electroluminescence shows them: bright silicon behind a grid of dark fingers and busbars.

Cells differ as a whole: each has another brightness, another darkening toward the edges and, if polycrystalline, other crystals. Defects
are local and dark. In the mixed categories, few prompts do not show every variant of a normal cell. The set decides whether a detector
tolerates whole-picture differences of normal parts, and about comparisons with the rest of the picture. It says nothing about colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

from changepair.tasks.ingestion.development.rendering import Colour, Plane, Rng, Scenes, grain, write_scenes
from changepair.tasks.ingestion.texture_defects import SIZE

DEFECTS = ("crack", "inactive", "fingers", "spot")


@dataclass(frozen=True)
class Cell:
    busbars: int
    width: float  # of a busbar, in pixels
    crystals: int  # 0 for a single crystal
    corner: float  # radius of the cut corners, as a share of the diagonal from the centre; 2 for square cells


def write(folder: Path) -> None:
    """Write each cell to folder/<category> in MVTec AD's layout, masks included."""
    write_scenes(folder, CATEGORIES)


def _draw(variants: tuple[Cell, ...], rng: Rng, kind: str, other: Rng) -> Colour:
    cell = variants[int(rng.integers(len(variants)))]
    down, right = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    y, x = down - SIZE / 2 + rng.uniform(-3, 3), right - SIZE / 2 + rng.uniform(-3, 3)
    level, falloff, slant = rng.uniform(95, 190), rng.uniform(0.1, 0.45), rng.uniform(-0.15, 0.15, 2)
    glow = 1 - falloff * (np.hypot(y, x) / SIZE * 1.6) ** 2 + (slant[0] * y + slant[1] * x) / SIZE + 0.05 * grain(rng, 30)
    bright = level * glow * (_crystals(cell, rng) if cell.crystals else 1 + 0.03 * grain(rng, 60))
    bright = bright * (1 + 0.04 * np.sin(2 * np.pi * y / 4.2))  # fingers, nearly as fine as pixels
    half = SIZE / (2 * cell.busbars)
    offset = np.abs((x + SIZE / 2) % (2 * half) - half)  # distance to the nearest busbar
    if kind != "good":
        bright = bright * (1 - _damage(kind, other, offset, x, half))
    bar = np.clip(cell.width / 2 - offset + 0.5, 0, 1)
    bright = bright * (1 - 0.75 * bar)
    square = np.clip(SIZE / 2 - 5 - np.maximum(np.abs(y), np.abs(x)) + 0.5, 0, 1)
    inside = square * np.clip(cell.corner * SIZE / 2 - np.hypot(y, x) + 0.5, 0, 1)
    picture = np.clip(8 + bright * inside + rng.uniform(2, 5) * grain(rng, 0.7), 0, 255)
    return np.repeat(picture[..., None], 3, axis=2)


def _crystals(cell: Cell, rng: Rng) -> Plane:
    """Draw adjacent crystals, each of another brightness, with dark boundaries."""
    seeds = rng.uniform(-30, SIZE + 30, size=(cell.crystals, 2))
    where = np.moveaxis(np.mgrid[0:SIZE, 0:SIZE], 0, -1) + np.stack([4 * grain(rng, 8), 4 * grain(rng, 8)], -1)
    distance, nearest = cKDTree(seeds).query(where, k=2)
    shade = rng.normal(1.0, 0.13, size=len(seeds))[nearest[..., 0]]
    dark = 0.35 * np.clip(grain(rng, 12) - 0.7, 0, 1)  # dislocations
    return np.asarray(shade * (1 - 0.25 * np.exp(-(distance[..., 1] - distance[..., 0]) / 2)) * (1 - dark))


def _damage(kind: str, other: Rng, offset: Plane, x: Plane, half: float) -> Plane:
    """Return the share of light that a defect takes, 0 to 1."""
    if kind == "fingers":  # interrupted fingers darken a strip between busbars
        start, length = other.uniform(-0.4, 0.2) * SIZE, other.uniform(8, 22)
        top, height = int(other.integers(10, SIZE - 110)), int(other.integers(50, 100))
        strip = ((x > start) & (x < start + length) & (offset > 3)).astype(np.float32)
        strip[:top], strip[top + height :] = 0, 0
        return np.asarray(other.uniform(0.3, 0.5) * ndimage.gaussian_filter(strip, 1.5))
    line, region = _crack(other)
    if kind == "crack":
        return np.asarray(other.uniform(0.45, 0.7) * line)
    if kind == "inactive":  # the part behind a crack is cut off
        return np.asarray(np.maximum(0.6 * line, other.uniform(0.5, 0.85) * region))
    away = np.mgrid[0:SIZE, 0:SIZE] - other.uniform(40, SIZE - 40, 2)[:, None, None]
    spot = np.exp(-(away**2).sum(0) / (2 * other.uniform(4, 9) ** 2))
    return np.asarray(other.uniform(0.4, 0.7) * np.clip(spot * (1 + 0.2 * grain(other, 4)), 0, 1))


def _crack(other: Rng) -> tuple[Plane, Plane]:
    """Draw a jagged line, and the region between it and the border."""
    turns = np.cumsum(other.normal(0, 0.25, size=24)) + other.uniform(0, 2 * np.pi)
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) * other.uniform(4, 8)
    points = [(float(a), float(b)) for a, b in other.uniform(0.25, 0.75, 2) * SIZE + np.cumsum(steps, axis=0)]
    drawn = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(drawn).line(points, fill=255, width=int(other.integers(1, 3)))
    area = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(area).polygon([*points, *[(a + 40, b + 12) for a, b in reversed(points)]], fill=255)
    line, region = (np.asarray(one, np.float32) / 255 for one in (drawn, area))
    return np.asarray(ndimage.gaussian_filter(line, 0.6)), np.asarray(ndimage.gaussian_filter(region, 0.8))


CELLS = {
    "mono": Cell(busbars=2, width=7, crystals=0, corner=1.28),
    "mono-square": Cell(busbars=4, width=4, crystals=0, corner=2),
    "poly": Cell(busbars=3, width=6, crystals=60, corner=2),
    "poly-fine": Cell(busbars=2, width=7, crystals=260, corner=2),
}
MIXED = {"mixed": ("mono-square", "poly"), "mixed-fine": ("mono", "poly-fine")}  # one line makes several variants
CATEGORIES = {
    **{name: Scenes(partial(_draw, (cell,)), DEFECTS) for name, cell in CELLS.items()},
    **{name: Scenes(partial(_draw, tuple(CELLS[each] for each in names)), DEFECTS) for name, names in MIXED.items()},
}
