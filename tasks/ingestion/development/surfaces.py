"""Draw six surfaces in colour with defects that change the whole picture: dye, contrast, weave and focus.

Two local defects show whether a choice that helps with a whole picture hurts elsewhere. The set decides about statistics of whole pictures,
about normalisation of appearance and about colour. It says nothing about objects or positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from changepair.tasks.ingestion.development.rendering import Colour, Ink, Plane, Rng, Scenes, grain, photograph, slope, write_scenes
from changepair.tasks.ingestion.texture_defects import SIZE

WHOLE = ("colour", "contrast", "weave", "focus")
LOCAL = ("slub", "spot")


@dataclass(frozen=True)
class Surface:
    tone: Callable[[Rng, float, float], Plane]
    """Draw the surface from 0, dark, to 1, light, at a pitch relative to the normal one and at an angle in radians."""
    dark: Ink
    light: Ink


def write(folder: Path) -> None:
    """Write each surface to folder/<category> in MVTec AD's layout, masks included."""
    write_scenes(folder, {name: Scenes(partial(_draw, surface), WHOLE + LOCAL, WHOLE) for name, surface in SURFACES.items()})


def _draw(surface: Surface, rng: Rng, kind: str, other: Rng) -> Colour:
    angle, pitch = np.deg2rad(rng.uniform(-1, 1)), rng.uniform(0.99, 1.01)
    if kind == "weave":
        pitch *= other.choice([other.uniform(0.82, 0.88), other.uniform(1.14, 1.22)])
        angle += np.deg2rad(other.choice([-1, 1]) * other.uniform(2, 5))
    tone = surface.tone(rng, pitch, angle)
    dark, light = np.asarray(surface.dark, np.float32), np.asarray(surface.light, np.float32)
    if kind == "colour":
        dye = other.uniform(0.05, 0.12) * other.choice([-1, 1], 3) * other.permutation([1.0, 0.5, 0.1])
        dark, light = dark * (1 + dye), light * (1 + dye)
    if kind == "contrast":
        tone = tone.mean() + (tone - tone.mean()) * other.choice([other.uniform(0.6, 0.75), other.uniform(1.3, 1.5)])
    if kind == "focus":
        tone = ndimage.gaussian_filter(tone, other.uniform(0.8, 1.3))
    if kind == "slub":
        tone = tone + _slub(other, angle)
    picture = dark + (light - dark) * np.clip(tone, -0.2, 1.2)[..., None].astype(np.float32)
    if kind == "spot":
        picture = picture * (1 - _spot(other)[..., None] * np.asarray(other.permutation([0.2, 0.35, 0.45]), np.float32))
    return photograph(picture, rng)


def _slub(other: Rng, angle: float) -> Plane:
    """Draw a thick thread, light along its ridge and dark at one side."""
    angle += other.choice([0, np.pi / 2]) + other.normal(0, 0.03)
    y, x = _turned(angle, other.uniform(-0.3, 0.3, 2) * SIZE)
    half, width = other.uniform(25, 60), other.uniform(1.8, 3)
    y = y + 2 * np.sin(x / other.uniform(14, 30))
    thread = np.exp(-(y**2) / (2 * width**2)) / (1 + np.exp((np.abs(x) - half) / 4))
    return (0.28 * thread - 0.16 * np.roll(thread, 4, axis=0)).astype(np.float32)


def _spot(other: Rng) -> Plane:
    """Draw the opacity of a small stain with a soft, uneven rim."""
    y, x = _turned(0, other.uniform(-0.42, 0.42, 2) * SIZE)
    radius = other.uniform(4, 8) * (1 + 0.2 * grain(other, 4))
    return (1 / (1 + np.exp((np.hypot(y, x) - radius) / 0.9))).astype(np.float32)


def _turned(angle: float, centre: np.ndarray | tuple[float, float] = (0.0, 0.0)) -> tuple[Plane, Plane]:
    """Return offsets from a centre, down and right of axes turned by an angle in radians. The picture's middle is 0."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - SIZE / 2
    y, x = y - np.float32(centre[0]), x - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * y - sin * x, sin * y + cos * x


def _threads(rng: Rng, angle: float, pitch: float, wander: float) -> tuple[Plane, Plane]:
    """Return the coordinates of threads, in threads, with random phase. `wander` is in pixels."""
    y, x = _turned(angle)
    y, x = y + wander * grain(rng, 16, 40) + rng.uniform(0, 900), x + wander * grain(rng, 40, 16) + rng.uniform(0, 900)
    return (y / pitch).astype(np.float32), (x / pitch).astype(np.float32)


def _twill(rng: Rng, pitch: float, angle: float) -> Plane:
    """Draw a 2/2 twill: each warp thread passes over two wefts and under two, one step later than its neighbour."""
    y, x = _threads(rng, angle, 8 * pitch, 0.7)
    over = (np.floor(y) + np.floor(x)) % 4 < 2
    warp, weft = np.abs(np.sin(np.pi * x)), np.abs(np.sin(np.pi * y))
    tone = np.where(over, 0.35 + 0.5 * warp, 0.1 + 0.35 * weft) + np.where(over, 0.05 * grain(rng, 3, 0.7), 0.05 * grain(rng, 0.7, 3))
    return tone + 0.03 * grain(rng, 20)


def _wire(rng: Rng, pitch: float, angle: float) -> Plane:
    """Draw woven wire: round wires in turn over and under, the dark ground between."""
    y, x = _threads(rng, angle, 17 * pitch, 0.5)
    over = (np.floor(y) + np.floor(x)) % 2 == 0
    down, right = (y % 1 - 0.5) / 0.27, (x % 1 - 0.5) / 0.27
    wires = [np.where(np.abs(at) < 1, np.sqrt(np.clip(1 - at**2, 0, 1)) * (0.65 - 0.3 * at), -1) for at in (right, down)]
    sunk = [0.25 * np.cos(np.pi * along) ** 2 for along in (y, x)]
    warp, weft = wires[0] - np.where(over, 0, sunk[0] + 0.15), wires[1] - np.where(over, sunk[1] + 0.15, 0)
    top = np.where(over, np.where(wires[0] > -1, warp, weft), np.where(wires[1] > -1, weft, warp))
    tone = np.where(top < -0.9, 0.05 + 0.03 * grain(rng, 5), 0.15 + 0.8 * top + 0.03 * grain(rng, 0.7))
    return ndimage.gaussian_filter(tone.astype(np.float32), 0.6)


def _plaster(rng: Rng, pitch: float, angle: float) -> Plane:
    coarse = (
        grain(rng, round(5 * pitch, 1))
        + 0.5 * grain(rng, round(2 * pitch, 1))
        + 0.9 * grain(rng, round(3 * pitch, 1), round(22 * pitch, 1))
    )
    pits = 1 / (1 + np.exp((grain(rng, round(1.6 * pitch, 1)) + 2.4) / 0.15))
    return 0.62 - 0.5 * slope(coarse, -2.3 + angle) - 0.3 * pits + 0.02 * grain(rng, 0.7)


def _paper(rng: Rng, pitch: float, angle: float) -> Plane:
    """Draw rough paper: cloudy where pulp is thick, with short fibres in two main directions."""
    fibres = np.maximum(grain(rng, round(pitch, 1), round(9 * pitch, 1)), grain(rng, round(8 * pitch, 1), round(pitch, 1)))
    tooth = slope(grain(rng, round(1.8 * pitch, 1)), -2.3 + angle)
    return 0.5 + 0.05 * grain(rng, round(12 * pitch, 1)) + 0.09 * fibres - 0.3 * tooth + 0.02 * grain(rng, 0.7)


def _leather(rng: Rng, pitch: float, angle: float) -> Plane:
    """Draw leather: creases where smooth noise crosses zero."""
    creases = [np.exp(-np.abs(grain(rng, round(size * pitch, 1))) * 7) for size in (6, 4, 3)]
    height = 0.5 * grain(rng, round(3 * pitch, 1)) - 1.5 * creases[0] - 1.2 * creases[1] - 0.6 * creases[2]
    return 0.62 + 0.16 * height - 0.25 * slope(height, -2.3 + angle) + 0.02 * grain(rng, 0.7)


def _carpet(rng: Rng, pitch: float, angle: float) -> Plane:
    """Draw loop pile in rows."""
    y, x = _threads(rng, angle, 11 * pitch, 1.6)
    x = x + 0.5 * (np.floor(y) % 2)
    loop = np.abs(np.sin(np.pi * y)) ** 0.7 * (0.55 + 0.45 * np.abs(np.sin(np.pi * x)))
    return 0.1 + 0.55 * loop + 0.1 * grain(rng, 0.8, 1.6) + 0.08 * grain(rng, 4) + 0.04 * grain(rng, 25)


SURFACES: dict[str, Surface] = {
    "twill": Surface(_twill, (22, 34, 62), (118, 142, 186)),
    "plaster": Surface(_plaster, (126, 112, 96), (232, 222, 204)),
    "paper": Surface(_paper, (178, 152, 112), (232, 212, 176)),
    "leather": Surface(_leather, (34, 18, 12), (164, 100, 62)),
    "carpet": Surface(_carpet, (44, 38, 40), (172, 116, 104)),
    "wire": Surface(_wire, (24, 26, 28), (212, 206, 190)),
}
