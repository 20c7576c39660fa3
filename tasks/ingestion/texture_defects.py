"""Draw pictures with exact pixel masks: four textures, each with three kinds of defect.

Neither the textures (scikit-image's `brick` and `gravel`, a weave and a brushed metal) nor the kinds of defect occur in training pairs.
Training pictures show the left half of a photographed texture, test pictures the right half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from changepair.tasks.common.pictures import Mask
from changepair.tasks.common.randomness import generator

LICENCE = "CC0 (brick and gravel: CC0Textures, through scikit-image; the rest made here)"
SIZE = 256  # pixels a side
SEED = 0
TRAIN_GOOD = 12  # pictures a category
TEST_GOOD = 8
TEST_DEFECTIVE = 6  # a category and defect
VISIBLE = 8.0  # grey levels that a pixel must change by to count as defective
SMALLEST = 60  # pixels that a defect must cover
THREAD_PITCH = 12  # pixels

Grey = NDArray[np.float64]  # (H, W), 0 to 255
Texture = Callable[[np.random.Generator, str], Grey]
Defect = Callable[[Grey, np.random.Generator], Grey]


@dataclass(frozen=True)
class Category:
    texture: Texture
    defects: dict[str, Defect]


def write(folder: Path) -> None:
    """Write each category to folder/<category> in MVTec AD's layout, masks included."""
    write_categories(folder, CATEGORIES)


def write_categories(folder: Path, categories: Mapping[str, Category]) -> None:
    """Write categories, each from its name alone. Its bytes do not depend on the other categories."""
    for name, category in categories.items():
        for split, count in (("train", TRAIN_GOOD), ("test", TEST_GOOD)):
            for index in range(count):
                rng = generator(SEED, name, split, "good", index)
                _save(category.texture(rng, split), folder / name / split / "good" / f"{index:03d}.png")
        for defect in category.defects:
            for index in range(TEST_DEFECTIVE):
                picture, mask = defective(category, defect, generator(SEED, name, "test", defect, index))
                _save(picture, folder / name / "test" / defect / f"{index:03d}.png")
                _save(mask.astype(np.float64) * 255, folder / name / "ground_truth" / defect / f"{index:03d}_mask.png")


def defective(category: Category, defect: str, rng: np.random.Generator) -> tuple[Grey, Mask]:
    """Draw a test picture with one defect. Return it with the mask of the pixels that changed by at least VISIBLE grey levels."""
    normal = category.texture(rng, "test")
    while True:  # a stain may land on grey of the same level, or a washer outside; such a draw shows nothing
        changed = np.clip(category.defects[defect](normal, rng), 0, 255)
        visible = np.abs(np.rint(changed) - np.rint(normal)) >= VISIBLE
        mask = visible | ndimage.binary_closing(visible, iterations=2)  # closing alone would remove pixels at the border
        if mask.sum() >= SMALLEST:
            return changed, mask


def _save(picture: Grey, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(picture).astype(np.uint8)).save(file)


def _photographed(load: Callable[[], np.ndarray]) -> Texture:
    def texture(rng: np.random.Generator, split: str) -> Grey:
        photo = load().astype(np.float64)
        top = rng.integers(0, photo.shape[0] - SIZE + 1)
        left = 0 if split == "train" else photo.shape[1] - SIZE
        crop = photo[top : top + SIZE, left : left + SIZE]
        return lit(crop[:, ::-1] if rng.random() < 0.5 else crop, rng)

    return texture


def _weave(rng: np.random.Generator, split: str) -> Grey:
    """Draw a plain weave: at each crossing the warp or the weft is on top, in a chequer pattern."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] + rng.uniform(0, THREAD_PITCH, size=2)[:, None, None]
    y, x = y + noise(rng, 20) * 0.6, x + noise(rng, 20) * 0.6
    warp, weft = np.abs(np.sin(np.pi * x / THREAD_PITCH)), np.abs(np.sin(np.pi * y / THREAD_PITCH))
    warp_on_top = (np.floor(x / THREAD_PITCH) + np.floor(y / THREAD_PITCH)) % 2 == 0
    return lit(70 + 110 * np.where(warp_on_top, warp * (0.6 + 0.4 * weft), weft * (0.6 + 0.4 * warp)) + 6 * noise(rng, 1), rng)


def _brushed_metal(rng: np.random.Generator, split: str) -> Grey:
    grain = ndimage.gaussian_filter1d(rng.standard_normal((SIZE, SIZE)), 24, axis=1, mode="wrap")
    return lit(150 + 14 * grain / grain.std() + 8 * noise(rng, 60), rng)


def noise(rng: np.random.Generator, scale: float) -> Grey:
    """Draw smooth noise of unit deviation whose features are about `scale` pixels large."""
    smooth = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), scale, mode="wrap")
    return smooth / smooth.std()


def lit(picture: Grey, rng: np.random.Generator) -> Grey:
    """Vary contrast and brightness slightly, as in different light."""
    return np.clip((picture - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-10, 10), 0, 255)


def _scratch(picture: Grey, rng: np.random.Generator) -> Grey:
    """Draw a thin bent line, brighter or darker than the surface."""
    start = rng.uniform(0.15, 0.85, 2) * SIZE
    angle = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(0, rng.uniform(60, 140), 12)
    bend = angle + rng.uniform(-0.6, 0.6) * steps / steps[-1]
    points = start + np.stack([np.cos(bend), np.sin(bend)], 1) * steps[:, None]
    line = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(line).line([(float(x), float(y)) for x, y in points], fill=255, width=int(rng.integers(2, 5)))
    opacity = ndimage.gaussian_filter(np.asarray(line) / 255.0, 0.6)
    return picture + rng.choice([-1.0, 1.0]) * rng.uniform(50, 90) * opacity


def _hole(picture: Grey, rng: np.random.Generator) -> Grey:
    """Draw a dark hole with a ragged rim."""
    return blend(picture, rng.uniform(5, 30) + 3 * noise(rng, 2), blob(rng, rng.uniform(9, 20), ragged=0.35, soft=0.7))


def _stain(picture: Grey, rng: np.random.Generator) -> Grey:
    """Draw a soft-edged spot that darkens or bleaches the surface."""
    factor = rng.choice([rng.uniform(0.45, 0.65), rng.uniform(1.35, 1.55)])
    return blend(picture, picture * factor, blob(rng, rng.uniform(16, 34), ragged=0.25, soft=3.0))


def _missing_thread(picture: Grey, rng: np.random.Generator) -> Grey:
    """Remove a part of one thread, so that the dark ground shows."""
    centre, length = rng.uniform(0.2, 0.8) * SIZE, rng.uniform(70, 180)
    start = rng.uniform(0, SIZE - length)
    along, across = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    inside = (np.abs(across - centre) < THREAD_PITCH / 2) & (along > start) & (along < start + length)
    gap = inside.T if rng.random() < 0.5 else inside
    return blend(picture, 45 + 4 * noise(rng, 1), ndimage.gaussian_filter(gap.astype(np.float64), 0.7))


def _dent(picture: Grey, rng: np.random.Generator) -> Grey:
    """Draw a hollow, lit on one side and in shade on the other."""
    y, x, radius = place(rng, rng.uniform(14, 28))
    hollow = np.exp(-(y**2 + x**2) / (2 * (radius / 2) ** 2))
    angle = rng.uniform(0, 2 * np.pi)
    return picture + rng.uniform(90, 130) * hollow * (np.cos(angle) * x + np.sin(angle) * y) / (radius / 2)


def _washer(picture: Grey, rng: np.random.Generator) -> Grey:
    """Draw a metal ring on the surface."""
    y, x, radius = place(rng, rng.uniform(14, 24))
    distance = np.hypot(y, x)
    ring = ndimage.gaussian_filter(((distance < radius) & (distance > radius * 0.5)).astype(np.float64), 0.7)
    return blend(picture, 150 + 60 * (x + y) / radius, ring)


def place(rng: np.random.Generator, radius: float) -> tuple[Grey, Grey, float]:
    """Draw a centre at least `radius` pixels inside the picture. Return offsets from its row and column, and the radius."""
    centre = rng.uniform(radius + 4, SIZE - radius - 4, 2)
    y, x = np.mgrid[0:SIZE, 0:SIZE] - centre[:, None, None]
    return y, x, radius


def blob(rng: np.random.Generator, radius: float, *, ragged: float, soft: float) -> Grey:
    """Draw the opacity, 0 to 1, of a roundish shape. `ragged` is the roughness of its rim, as a share of the radius. `soft` is its edge in
    pixels."""
    y, x, radius = place(rng, radius)
    rim = radius * (1 + ragged * noise(rng, 5) * 0.5)
    return ndimage.gaussian_filter((np.hypot(y, x) < rim).astype(np.float64), soft)


def blend(under: Grey, over: Grey, opacity: Grey) -> Grey:
    return under * (1 - opacity) + over * opacity


CATEGORIES: dict[str, Category] = {
    "brick": Category(_photographed(skimage.data.brick), {"scratch": _scratch, "hole": _hole, "stain": _stain}),
    "gravel": Category(_photographed(skimage.data.gravel), {"washer": _washer, "stain": _stain, "scratch": _scratch}),
    "weave": Category(_weave, {"missing-thread": _missing_thread, "hole": _hole, "stain": _stain}),
    "metal": Category(_brushed_metal, {"scratch": _scratch, "dent": _dent, "stain": _stain}),
}
