"""Draw pictures in colour that look photographed, and write them with exact masks.

A picture is drawn from two generators: one for the scene, one for the defect. So the same scene exists with and without its defect, and
their difference is the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from changepair.tasks.common.pictures import Mask
from changepair.tasks.common.randomness import generator
from changepair.tasks.ingestion.texture_defects import SEED, SIZE, SMALLEST, VISIBLE

TRAIN_GOOD, TEST_GOOD, TEST_DEFECTIVE = 12, 24, 8  # pictures a category; the last is for each defect
FIELD = 1024  # side in pixels of the noise that pictures take pieces of
FINE = 2  # pixels that are drawn for each pixel of a side, where shapes have sharp edges
GOOD = "good"

Plane = NDArray[np.floating[Any]]  # (H, W)
Colour = NDArray[np.floating[Any]]  # (H, W, 3), 0 to 255
Ink = tuple[float, float, float]  # red, green and blue, 0 to 255
Rng = np.random.Generator


@dataclass(frozen=True)
class Scenes:
    """One category: how it is drawn, and the kinds of defect, of which those in `whole` change every pixel."""

    draw: Callable[[Rng, str, Rng], Colour]
    """Draw the scene of the first generator with a kind of defect, or GOOD, which the second generator places."""
    defects: tuple[str, ...]
    whole: tuple[str, ...] = ()


def write_scenes(folder: Path, categories: Mapping[str, Scenes]) -> None:
    """Write each category to folder/<category> in MVTec AD's layout, masks included, each from its name alone."""
    for name, category in categories.items():
        for split, kind, count in (
            ("train", GOOD, TRAIN_GOOD),
            ("test", GOOD, TEST_GOOD),
            *(("test", kind, TEST_DEFECTIVE) for kind in category.defects),
        ):
            for index in range(count):
                picture, mask = _pair(category, kind, (name, split, kind, index))
                _save(picture, folder / name / split / kind / f"{index:03d}.png")
                if kind != GOOD:
                    _save(np.where(mask, 255, 0), folder / name / "ground_truth" / kind / f"{index:03d}_mask.png")


def _pair(category: Scenes, kind: str, item: tuple[str | int, ...]) -> tuple[Colour, Mask]:
    """Draw a picture. Return it with the mask of the pixels of which a channel changed by at least VISIBLE grey levels."""
    good = category.draw(generator(SEED, *item), GOOD, generator(SEED, *item))
    if kind == GOOD:
        return good, np.zeros((SIZE, SIZE), bool)
    for attempt in range(100):
        changed = category.draw(generator(SEED, *item), kind, generator(SEED, *item, "defect", attempt))
        visible = (np.abs(np.rint(changed) - np.rint(good)) >= VISIBLE).any(axis=2)
        mask = np.ones_like(visible) if kind in category.whole else visible | ndimage.binary_closing(visible, iterations=2)
        if mask.sum() >= SMALLEST:
            return changed, mask
    raise AssertionError(f"{item}: no draw shows the defect")


def _save(picture: NDArray[np.generic], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(picture).astype(np.uint8)).save(file, compress_level=1)


@lru_cache(maxsize=32)  # 4 MiB each
def _field(down: float, across: float) -> Plane:
    """Draw smooth noise of unit deviation that tiles, with features of the two sizes in pixels."""
    white = generator(SEED, "field", f"{down:.2f}", f"{across:.2f}").standard_normal((FIELD, FIELD))
    kernel = np.exp(-2 * np.pi**2 * ((down * np.fft.fftfreq(FIELD)[:, None]) ** 2 + (across * np.fft.rfftfreq(FIELD)) ** 2))
    smooth = np.fft.irfft2(np.fft.rfft2(white) * kernel)
    return (smooth / smooth.std()).astype(np.float32)


def grain(rng: Rng, down: float, across: float | None = None) -> Plane:
    """Take a piece of smooth noise of unit deviation, with features of `down` by `across` pixels."""
    top, left = (int(start) for start in rng.integers(0, FIELD - SIZE, size=2))
    piece = _field(down, down if across is None else across)[top : top + SIZE, left : left + SIZE]
    return piece[:, ::-1] if rng.random() < 0.5 else piece


def mixed(ink: Ink, other: Ink, share: float) -> Ink:
    """Mix a share, 0 to 1, of the first ink with the other."""
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(ink, other, strict=True))
    return red, green, blue


def soften(plane: Plane, radius: float) -> Plane:
    """Blur opacities, 0 to 1, by an approximate Gaussian."""
    picture = Image.fromarray(np.rint(plane * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(picture, dtype=np.float32) / 255


def slope(plane: Plane, angle: float) -> Plane:
    """Return how steeply a height rises toward the light, which stands at an angle in radians from the right, clockwise."""
    down, right = np.gradient(plane)
    return np.asarray(np.float32(np.sin(angle)) * down + np.float32(np.cos(angle)) * right)


def put(
    picture: Colour, cover: Plane, coat: Colour | Ink, *, light: float, bevel: float = 2.0, relief: float = 1.0, shadow: float = 4.0
) -> Colour:
    """Lay a solid on a picture. `cover` is its opacity and `coat` its colour.

    `bevel` and `shadow` are the sizes of its rounded edge and of its shadow in pixels. `relief` is the contrast of the edge.
    """
    lit = relief * 90 * bevel * slope(soften(cover, bevel), light)
    away = (-shadow * np.sin(light), -shadow * np.cos(light))
    dark = 1 - 0.5 * ndimage.shift(soften(cover, shadow * 0.6), away, order=0, mode="nearest")
    ground = picture * dark[..., None]
    solid = np.asarray(coat, dtype=np.float32) - lit[..., None]
    return ground + cover[..., None] * (solid - ground)


def photograph(picture: Colour, rng: Rng, *, noise: float = 2.0, uneven: float = 0.06) -> Colour:
    """Vary the light and add a sensor's noise. `noise` is in grey levels, `uneven` the share by which the light falls off."""
    y, x = (np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5).astype(np.float32)
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * uneven)
    light = rng.uniform(0.96, 1.04) * (1 + fall * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y))
    tint = np.asarray(rng.uniform(0.99, 1.01, 3), dtype=np.float32)
    sensor = noise * (
        rng.standard_normal((SIZE, SIZE), dtype=np.float32)[..., None] + 0.5 * rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32)
    )
    return np.clip(picture * light[..., None] * tint + sensor, 0, 255)
