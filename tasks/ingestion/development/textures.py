"""Draw six grey textures with three kinds of defect each, with exact masks.

None of the textures or kinds is in texture-defects. Pebbles are hard: no two places look alike, and a defect is smaller than normal
structures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

from changepair.tasks.ingestion.texture_defects import SIZE, Category, Grey, blend, blob, lit, noise, place, write_categories


def write(folder: Path) -> None:
    """Write each texture to folder/<category> in MVTec AD's layout, masks included."""
    write_categories(folder, CATEGORIES)


def _granite(rng: np.random.Generator, split: str) -> Grey:
    grains = ndimage.median_filter(rng.choice([60.0, 120.0, 150.0, 200.0], p=[0.2, 0.3, 0.3, 0.2], size=(SIZE, SIZE)), 5)
    return lit(ndimage.gaussian_filter(grains, 0.8) + 5 * noise(rng, 1), rng)


def _planks(rng: np.random.Generator, split: str) -> Grey:
    width, start = 52, rng.uniform(0, 52)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    board = np.floor((y + start) / width).astype(int)
    shade = rng.uniform(-14, 14, size=board.max() + 1)[board]
    grain = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), (0.8, 30), mode="wrap")
    joint = 45 * np.exp(-((((y + start) % width) - 1) ** 2) / 2)
    return lit(140 + shade + 12 * grain / grain.std() - joint + 4 * np.sin(x / 40 + board), rng)


def _knit(rng: np.random.Generator, split: str) -> Grey:
    y, x = np.mgrid[0:SIZE, 0:SIZE] + rng.uniform(0, 16, size=2)[:, None, None]
    y, x = y + 0.8 * noise(rng, 24), x + 0.8 * noise(rng, 24)
    lean = np.where((x // 10) % 2 == 0, 1, -1)
    loops = 55 * np.abs(np.sin(np.pi * (y + 0.7 * lean * (x % 10)) / 9)) - 40 * np.exp(-((x % 10) ** 2) / 3)
    return lit(120 + loops + 5 * noise(rng, 1), rng)


def _dots(rng: np.random.Generator, split: str) -> Grey:
    y, x = np.mgrid[0:SIZE, 0:SIZE] + rng.uniform(0, 22, size=2)[:, None, None]
    distance = np.hypot((y % 22) - 11, ((x + 11 * (np.floor(y / 22) % 2)) % 22) - 11)
    return lit(90 + 100 / (1 + np.exp((distance - 5.5) / 0.7)) + 5 * noise(rng, 1.5), rng)


def _pebbles(rng: np.random.Generator, split: str) -> Grey:
    """Draw adjacent stones of any grey, round and dark at the rim."""
    stones = rng.uniform(-20, SIZE + 20, size=(int(rng.integers(330, 400)), 2))
    distance, nearest = cKDTree(stones).query(np.moveaxis(np.mgrid[0:SIZE, 0:SIZE], 0, -1), k=2)
    rim = 1 - np.exp(-(distance[..., 1] - distance[..., 0]) / 2.5)
    shade = rng.normal(135, 32, size=len(stones))[nearest[..., 0]] - 1.5 * distance[..., 0]
    return lit(30 + rim * (shade - 20) + 7 * noise(rng, 1.2), rng)


def _terrazzo(rng: np.random.Generator, split: str) -> Grey:
    """Scatter chippings of several sizes and greys over a pale ground."""
    picture = 185 + 4 * noise(rng, 1)
    for size, threshold, grey in ((9, 1.5, 90), (5, 1.6, 140), (3, 1.7, 60)):
        picture = np.where(noise(rng, size) > threshold, grey + 6 * noise(rng, 1.5), picture)
    return lit(ndimage.gaussian_filter(picture, 0.7), rng)


def _crack(picture: Grey, rng: np.random.Generator) -> Grey:
    """Draw a dark line with random turns."""
    turns = np.cumsum(rng.normal(0, 0.45, size=28)) + rng.uniform(0, 2 * np.pi)
    points = rng.uniform(0.3, 0.7, 2) * SIZE + np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1) * 6, axis=0)
    line = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(line).line([(float(x), float(y)) for x, y in points], fill=255, width=int(rng.integers(2, 4)))
    return blend(picture, 35 + 6 * noise(rng, 2), ndimage.gaussian_filter(np.asarray(line) / 255.0, 0.6))


def _smear(picture: Grey, rng: np.random.Generator) -> Grey:
    """Smear a patch along one direction."""
    wiped = ndimage.rotate(ndimage.gaussian_filter1d(ndimage.rotate(picture, 37, reshape=False, mode="reflect"), 9), -37, reshape=False)
    return blend(picture, wiped + rng.choice([-22.0, 22.0]), blob(rng, rng.uniform(18, 32), ragged=0.3, soft=2.0))


def _chip(picture: Grey, rng: np.random.Generator) -> Grey:
    """Draw a pale piece with sharp edges, as where the surface broke."""
    y, x, radius = place(rng, rng.uniform(7, 15))
    corners = radius * rng.uniform(0.6, 1.2, size=7)
    rim = np.interp(np.arctan2(y, x), np.linspace(-np.pi, np.pi, 8), np.append(corners, corners[0]))
    return blend(picture, 225 + 8 * noise(rng, 2), (np.hypot(y, x) < rim).astype(np.float64))


def _shifted(picture: Grey, rng: np.random.Generator) -> Grey:
    """Shift a band sideways."""
    top, height = int(rng.integers(30, SIZE - 70)), int(rng.integers(14, 34))
    left = int(rng.integers(0, SIZE // 3))
    moved = np.roll(picture, (5, int(rng.integers(5, 12))), axis=(0, 1))
    inside = np.zeros_like(picture)
    inside[top : top + height, left : left + SIZE // 2] = 1
    return blend(picture, moved, inside)


CATEGORIES: dict[str, Category] = {
    "granite": Category(_granite, {"crack": _crack, "smear": _smear, "chip": _chip}),
    "planks": Category(_planks, {"crack": _crack, "chip": _chip, "shifted": _shifted}),
    "knit": Category(_knit, {"smear": _smear, "crack": _crack, "shifted": _shifted}),
    "pebbles": Category(_pebbles, {"crack": _crack, "smear": _smear, "chip": _chip}),
    "terrazzo": Category(_terrazzo, {"crack": _crack, "smear": _smear, "shifted": _shifted}),
    "dots": Category(_dots, {"shifted": _shifted, "smear": _smear, "chip": _chip}),
}
