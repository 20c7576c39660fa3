"""Draw what parts lie on: a table, wood or a conveyor belt, with dust and faint stains."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from changepair.tasks.ingestion.development.rendering import FINE, Colour, Rng, grain
from changepair.tasks.ingestion.texture_defects import SIZE


def dirt(ground: Colour, rng: Rng) -> Colour:
    """Lay dust and at times a faint stain on the ground."""
    dust = Image.new("L", (SIZE * FINE,) * 2)
    pen = ImageDraw.Draw(dust)
    for x, y, size in zip(*rng.uniform(0, SIZE * FINE, (2, 14)), rng.uniform(1.5, 4.5, 14), strict=True):
        pen.ellipse((x, y, x + size, y + size * 0.7), fill=int(80 + 30 * size))
    specks = np.asarray(dust.reduce(FINE), np.float32)[..., None] / 255
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - rng.uniform(0, SIZE, 2).astype(np.float32)[:, None, None]
    radius = rng.uniform(14, 34) * (1 + 0.25 * grain(rng, 8))
    stain = np.clip((radius - np.hypot(y, x)) / 5, 0, 1) * (rng.uniform(0.03, 0.12) if rng.random() < 0.5 else 0)
    ground = ground * (1 - stain[..., None])
    return ground + specks * rng.choice([45, -45], p=[0.7, 0.3])


def board(rng: Rng) -> Colour:
    """Draw a plain grey table."""
    return np.asarray((150, 152, 154), np.float32) + (2 * grain(rng, 2) + 3 * grain(rng, 40))[..., None]


def wood(rng: Rng) -> Colour:
    """Draw a wooden bench, its grain from left to right."""
    rings = np.sin(4 * grain(rng, 10, 60) + 0.15 * grain(rng, 2, 20))
    tone = 16 * rings + 7 * grain(rng, 0.8, 20) + 5 * grain(rng, 3, 50)
    return np.asarray((164, 124, 82), np.float32) + tone[..., None] * np.asarray((1, 0.9, 0.7), np.float32)


def belt(rng: Rng) -> Colour:
    """Draw a rubber conveyor belt with a diamond pattern."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + rng.uniform(0, 99, 2).astype(np.float32)[:, None, None]
    ribs = np.maximum(np.sin((x + y) * 0.55), np.sin((x - y) * 0.55)) ** 3
    return np.asarray((62, 68, 70), np.float32) + (9 * ribs + 4 * grain(rng, 0.8) + 5 * grain(rng, 14))[..., None]


def table(rng: Rng) -> Colour:
    """Draw a pale table under a lamp at one side."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - rng.uniform(-0.2, 0.3, 2).astype(np.float32)[:, None, None]
    lamp = np.exp(-(x**2 + y**2) / rng.uniform(1.2, 1.8))
    return np.asarray((212, 208, 198), np.float32) * (0.55 + 0.5 * lamp)[..., None] + (1.5 * grain(rng, 1.2))[..., None]
