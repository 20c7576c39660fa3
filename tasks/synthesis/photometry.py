"""Changes of light and colour: strong ones that turn a photograph into a texture, mild ones that set prompt and query apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tasks.pictures import Picture
from tasks.synthesis.settings import AugmentationSettings

Step = Callable[[Image.Image, np.random.Generator], Image.Image]


def _gamma(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    gamma = rng.uniform(0.5, 2.0)
    return image.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)


def _brightness(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor, offset = rng.uniform(0.8, 1.2), rng.uniform(-30, 30)
    return image.point([min(max(round(level * factor + offset), 0), 255) for level in range(256)] * 3)


def _hue(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _turn_hue(image, rng.uniform(-0.2, 0.2))


# The photometric half of DRAEM's list (its geometric step, rotation, is the crop's and the mask's here).
STRONG: tuple[Step, ...] = (
    _gamma,
    _brightness,
    _hue,
    lambda image, rng: ImageEnhance.Sharpness(image).enhance(rng.uniform(1.5, 4.0)),
    lambda image, rng: ImageEnhance.Color(image).enhance(rng.uniform(0.2, 2.0)),
    lambda image, rng: ImageOps.solarize(image, int(rng.integers(32, 128))),
    lambda image, rng: ImageOps.posterize(image, int(rng.integers(3, 7))),
    lambda image, rng: ImageOps.invert(image),
    lambda image, rng: ImageOps.autocontrast(image),
    lambda image, rng: ImageOps.equalize(image),
)


def three_random(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture under three different augmentations of STRONG, in random order (DRAEM, section 3.3)."""
    image = Image.fromarray(picture)
    for index in rng.choice(len(STRONG), size=3, replace=False):
        image = STRONG[index](image, rng)
    return np.asarray(image)


def jitter(picture: Picture, settings: AugmentationSettings, rng: np.random.Generator) -> Picture:
    """Another light on the same scene: brightness, contrast, saturation and hue, each drawn evenly within the settings."""
    image = Image.fromarray(picture)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + rng.uniform(-settings.light, settings.light))
    turn = rng.uniform(-settings.hue, settings.hue)
    return np.asarray(_turn_hue(image, turn) if settings.hue else image)


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Every hue moved by `turn` of the colour circle."""
    hue, saturation, value = image.convert("HSV").split()
    moved = hue.point([(level + round(turn * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (moved, saturation, value)).convert("RGB")
