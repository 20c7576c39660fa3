"""Draw perforated sheet, honeycomb and grilles that are cropped at any phase, so that holes meet the border.

The set decides about rim effects: a detector that takes a cut hole for a defect ranks low. It also has one whole-picture change, of pitch.
It says little about colour, and nothing about single objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from changepair.tasks.ingestion.development.rendering import Colour, Ink, Plane, Rng, Scenes, grain, photograph, put, write_scenes
from changepair.tasks.ingestion.texture_defects import SIZE

DEFECTS = ("blocked", "missing", "enlarged", "bent", "pitch")


@dataclass(frozen=True)
class Sheet:
    pitch: tuple[float, float]  # pixels between rows and between holes of a row
    staggered: bool
    rim: Callable[[Plane, Plane], Plane]  # distance in pixels from a hole's centre along its shape, from offsets down and right
    radius: float  # pixels
    metal: Ink
    behind: Ink
    brushed: tuple[float, float]  # size of the metal's grain in pixels
    shade: float = 12.0  # contrast of that grain in grey levels


def write(folder: Path) -> None:
    """Write each sheet to folder/<category> in MVTec AD's layout, masks included."""
    write_scenes(folder, {name: Scenes(partial(_draw, sheet), DEFECTS, whole=("pitch",)) for name, sheet in SHEETS.items()})


def _draw(sheet: Sheet, rng: Rng, kind: str, other: Rng) -> Colour:
    light = rng.uniform(-2.5, -2.1)
    turn, phase = np.deg2rad(rng.uniform(-1.5, 1.5)), rng.uniform(0, 200, 2)
    wide = rng.uniform(0.995, 1.005) * (other.choice([0.88, 1.14]) if kind == "pitch" else 1)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - SIZE / 2
    if kind == "bent":
        y, x = _bend(y, x, other)
    v = (np.cos(turn) * y - np.sin(turn) * x) / wide + phase[0]
    u = (np.sin(turn) * y + np.cos(turn) * x) / wide + phase[1]
    gap, chosen = _gap(sheet, v, u, kind, other)
    metal = np.asarray(sheet.metal, np.float32) + (sheet.shade * grain(rng, *sheet.brushed) + 3 * grain(rng, 40))[..., None]
    behind = np.asarray(sheet.behind, np.float32) + (4 * grain(rng, 30))[..., None]
    if kind == "blocked":
        dirt = ndimage.binary_dilation(chosen, iterations=2) & (gap < 1 + grain(other, 3))
        level = np.asarray(other.choice([[60, 48, 36], [120, 112, 100], [150, 120, 80]]), np.float32)
        behind = np.where(dirt[..., None], level + (12 * grain(other, 2))[..., None], behind)
    cover = np.clip(wide * gap + 0.5, 0, 1).astype(np.float32)
    return photograph(put(behind, cover, metal, light=light, bevel=1.3, relief=0.8, shadow=3), rng)


def _bend(y: Plane, x: Plane, other: Rng) -> tuple[Plane, Plane]:
    """Shift the sheet's points around a place, most in its middle."""
    down, right = other.uniform(-0.32, 0.32, 2) * SIZE
    near = np.exp(-((y - down) ** 2 + (x - right) ** 2) / (2 * other.uniform(8, 13) ** 2)).astype(np.float32)
    angle, by = other.uniform(0, 2 * np.pi), other.uniform(4, 6)
    return y + by * np.sin(angle) * near, x + by * np.cos(angle) * near


def _gap(sheet: Sheet, v: Plane, u: Plane, kind: str, other: Rng) -> tuple[Plane, np.ndarray]:
    """Return the distance in pixels to the nearest rim, negative inside holes, and the cell of the hole that the defect is at."""
    top, left = (int(place) for place in other.integers(24, SIZE - 24, 2))
    growth = other.uniform(1.2, 1.32)
    first = np.floor(v / sheet.pitch[0])
    gaps, cells = [], []
    for row in (first, first + np.where(v / sheet.pitch[0] - first < 0.5, -1, 1)):  # a hexagon reaches into the rows next to its own
        across = u + (row % 2) * sheet.pitch[1] / 2 * sheet.staggered
        column = np.floor(across / sheet.pitch[1])
        distance = sheet.rim(v - (row + 0.5) * sheet.pitch[0], across - (column + 0.5) * sheet.pitch[1])
        if not gaps:
            row_at, column_at = row[top, left], column[top, left]
        chosen = (row == row_at) & (column == column_at)
        radius = np.where(chosen, {"missing": -4, "enlarged": growth * sheet.radius}.get(kind, sheet.radius), sheet.radius)
        gaps.append(distance - radius)
        cells.append(chosen)
    nearer = gaps[0] <= gaps[1]
    return np.minimum(*gaps).astype(np.float32), np.where(nearer, *cells)


def _hexagon(y: Plane, x: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(x) / 2 + np.abs(y) * np.sqrt(3) / 2)


def _slot(y: Plane, x: Plane) -> Plane:
    return np.hypot(y, np.maximum(np.abs(x) - 12, 0))


def _square(y: Plane, x: Plane) -> Plane:
    return np.maximum(np.maximum(np.abs(x), np.abs(y)), (np.abs(x) + np.abs(y)) * 0.62)


def _diamond(y: Plane, x: Plane) -> Plane:
    return (np.abs(y) + 0.55 * np.abs(x)) / 1.14


SHEETS: dict[str, Sheet] = {
    "round": Sheet((26, 30), True, np.hypot, 9, (168, 170, 174), (28, 28, 32), (0.8, 18)),
    "honeycomb": Sheet((31.18, 36), True, _hexagon, 15.2, (196, 172, 116), (64, 52, 38), (1.5, 1.5), 8),
    "slotted": Sheet((22, 44), True, _slot, 5.5, (96, 108, 128), (196, 194, 186), (1, 1), 5),
    "grille": Sheet((34, 34), False, _square, 13, (58, 62, 64), (150, 128, 104), (2, 2), 5),
    "expanded": Sheet((20, 36), True, _diamond, 6.6, (184, 186, 180), (52, 66, 58), (3, 3), 9),
}
