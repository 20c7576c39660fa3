"""Draw one normal letter among others, as small as handwriting: a semantic domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from changepair.tasks.common.randomness import generator
from changepair.tasks.ingestion.texture_defects import SEED

LETTER = 16  # pixels a side
DRAWN = 128  # side in pixels before it is reduced
NORMAL_LETTER, OTHER_LETTERS = "a", "ceghknsuxz"
TRAIN_NORMAL, TEST_NORMAL, TEST_OTHER = 24, 40, 4  # the last is for each letter


def write(folder: Path) -> None:
    """Write the letters as PNG to folder/train/good, test/good and test/<letter>."""
    parts = (("train", NORMAL_LETTER, TRAIN_NORMAL), ("test", NORMAL_LETTER, TEST_NORMAL), ("test", OTHER_LETTERS, TEST_OTHER))
    for split, letters, count in parts:
        for letter in letters:
            into = folder / split / ("good" if letter == NORMAL_LETTER else f"letter-{letter}")
            into.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                _letter(letter, generator(SEED, split, letter, index)).save(into / f"{index:03d}.png")


def _letter(letter: str, rng: np.random.Generator) -> Image.Image:
    """Draw a letter in white on black."""
    sheet = Image.new("L", (DRAWN, DRAWN))
    font = ImageFont.load_default(size=int(rng.integers(92, 124)))
    width = int(rng.integers(0, 5))
    ImageDraw.Draw(sheet).text((DRAWN / 2, DRAWN / 2 - 10), letter, fill=255, font=font, anchor="mm", stroke_width=width)
    turn, lean, stretch = np.deg2rad(rng.uniform(-14, 14)), rng.uniform(-0.25, 0.25), np.exp(rng.uniform(-0.12, 0.12, size=2))
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array([[1.0, 0.0], [lean, 1.0]]) * stretch
    middle = np.full(2, (DRAWN - 1) / 2)
    offset = middle - turned @ middle + rng.uniform(-6, 6, 2)
    placed = ndimage.affine_transform(np.asarray(sheet, dtype=np.float64), turned, offset, order=1)
    small = placed.reshape(LETTER, DRAWN // LETTER, LETTER, DRAWN // LETTER).mean(axis=(1, 3))
    return Image.fromarray(np.rint(np.clip(small * rng.uniform(0.75, 1.0), 0, 255)).astype(np.uint8))
