"""Draws pictures to choose settings on, of a semantic domain: one letter is normal, and others are not.

As with development-textures no table reports them. They are small, as handwriting in a form is; each leans, is as bold and lies as it
comes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from changepair.tasks.common.randomness import generator

LICENCE = "CC0 (made here, with Pillow's own font)"
SIZE = 16  # pixels a side
DRAWN = 128  # before it is made small
NORMAL = "a"
OTHERS = "ceghknsuxz"
TRAIN_GOOD, TEST_GOOD, TEST_OTHERS = 24, 40, 4  # the last for each letter
SEED = 0


def write(folder: Path) -> None:
    """Writes the letters as PNG to folder/train/good, test/good and test/<letter>."""
    for split, letters, count in (("train", NORMAL, TRAIN_GOOD), ("test", NORMAL, TEST_GOOD), ("test", OTHERS, TEST_OTHERS)):
        for letter in letters:
            into = folder / split / ("good" if letter == NORMAL else f"letter-{letter}")
            into.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                _drawn(letter, generator(SEED, split, letter, index)).save(into / f"{index:03d}.png")


def _drawn(letter: str, rng: np.random.Generator) -> Image.Image:
    """Draws a letter in white on black."""
    sheet = Image.new("L", (DRAWN, DRAWN))
    font = ImageFont.load_default(size=int(rng.integers(92, 124)))
    width = int(rng.integers(0, 5))
    ImageDraw.Draw(sheet).text((DRAWN / 2, DRAWN / 2 - 10), letter, fill=255, font=font, anchor="mm", stroke_width=width)
    turn, lean, stretch = np.deg2rad(rng.uniform(-14, 14)), rng.uniform(-0.25, 0.25), np.exp(rng.uniform(-0.12, 0.12, size=2))
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array([[1.0, 0.0], [lean, 1.0]]) * stretch
    middle = np.full(2, (DRAWN - 1) / 2)
    placed = ndimage.affine_transform(
        np.asarray(sheet, dtype=np.float64), turned, middle - turned @ middle + rng.uniform(-6, 6, 2), order=1
    )
    small = placed.reshape(SIZE, DRAWN // SIZE, SIZE, DRAWN // SIZE).mean(axis=(1, 3))
    return Image.fromarray(np.rint(np.clip(small * rng.uniform(0.75, 1.0), 0, 255)).astype(np.uint8))
