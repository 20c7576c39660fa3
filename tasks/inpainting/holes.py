"""Draw holes to train inpainting on: roundish, of many sizes, sometimes two."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from changepair.tasks.common.pictures import Mask

SMALLEST, LARGEST = 0.01, 0.5  # shares of the picture
SECOND = 0.3  # how often there are two


def hole(size: int, rng: np.random.Generator) -> Mask:
    """Draw a hole, size x size."""
    while True:
        mask = blob(size, rng)
        if rng.random() < SECOND:
            mask |= blob(size, rng)
        if SMALLEST < mask.mean() < LARGEST:
            return mask


def blob(size: int, rng: np.random.Generator) -> Mask:
    """Draw a roundish region, size x size: an ellipse with a wavy rim."""
    angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    radius = 1.0 + sum(rng.uniform(0, 0.35) / order * np.cos(order * angles + rng.uniform(0, 2 * np.pi)) for order in range(2, 7))
    axes = size * np.exp(rng.uniform(np.log(0.04), np.log(0.28), size=2))
    turn = rng.uniform(0, np.pi)
    centre = rng.uniform(0.1, 0.9, size=2) * size
    along, across = radius * np.cos(angles) * axes[0], radius * np.sin(angles) * axes[1]
    x = centre[0] + along * np.cos(turn) - across * np.sin(turn)
    y = centre[1] + along * np.sin(turn) + across * np.cos(turn)
    region = Image.new("L", (size, size))
    ImageDraw.Draw(region).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    return np.asarray(region) > 0
