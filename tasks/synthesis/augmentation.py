"""Change light, colour and geometry: strongly, to turn a photograph into a texture, or slightly, so that prompt and query differ."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from changepair.tasks.common.pictures import Mask, Picture, Pixels
from changepair.tasks.synthesis.settings import AugmentationSettings

OTHERS = 0.4  # probability that a picture is blurred, and that it gets noise
GRAIN = (0.5, 2.0)  # range of sigma in pixels, for coarse noise

Affine = tuple[float, float, float, float, float, float]  # maps output to input, row by row, in pixels from the first pixel's corner
Step = Callable[[Picture, np.random.Generator], Picture]

LEVELS = np.arange(256, dtype=np.float64)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # NTSC
FROM_YIQ = np.linalg.inv(TO_YIQ)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float64) / 13
IDENTITY = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float64)


def _mapped(picture: Picture, levels: NDArray[np.float64]) -> Picture:
    """Map every level to another one. `levels` has 256 entries, for 0 to 255."""
    return cv2.LUT(picture, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _gamma(picture: Picture, rng: np.random.Generator) -> Picture:
    levels = [255 * (LEVELS / 255) ** rng.uniform(0.5, 2.0) for _channel in range(3)]
    return cv2.LUT(picture, np.rint(np.stack(levels, axis=-1)[None]).astype(np.uint8))


def _brightness(picture: Picture, rng: np.random.Generator) -> Picture:
    return _mapped(picture, LEVELS * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30))


def _sharpness(picture: Picture, rng: np.random.Generator) -> Picture:
    """Sharpen the picture, or blur it for factors below 1."""
    factor = rng.uniform(0.0, 3.0)
    return cv2.filter2D(picture, -1, factor * IDENTITY + (1 - factor) * SMOOTH)


def _hue_and_saturation(picture: Picture, rng: np.random.Generator) -> Picture:
    turned = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    hue, saturation = rng.uniform(-50, 50, size=2)
    turned[..., 0] += np.uint8(round(hue) % 256)  # the circle has 256 steps, the same as 8 bits
    turned[..., 1] = _mapped(turned[..., 1], LEVELS + saturation)
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL)


def _solarize(picture: Picture, rng: np.random.Generator) -> Picture:
    """Invert bright pixels, in half of the draws."""
    threshold = int(rng.integers(32, 129))
    return picture if rng.random() < 0.5 else _mapped(picture, np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS))


def _posterize(picture: Picture, rng: np.random.Generator) -> Picture:
    step = 2 ** (8 - int(rng.integers(1, 9)))
    return _mapped(picture, LEVELS // step * step)


def _invert(picture: Picture, rng: np.random.Generator) -> Picture:
    return cv2.bitwise_not(picture)


def _stretched(picture: Picture, rng: np.random.Generator) -> Picture:
    """Stretch each channel to all levels. Up to a fifth of the pixels at either end is cut off."""
    cut = rng.uniform(0, 0.2)
    low, high = np.quantile(picture.reshape(-1, 3), (cut, 1 - cut), axis=0)
    factor = 255 / np.maximum(high - low, 1)
    return cv2.transform(picture, np.column_stack([np.diag(factor), -low * factor]))


def _equalized(picture: Picture, rng: np.random.Generator) -> Picture:
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(picture)])


def _rotated(picture: Picture, rng: np.random.Generator) -> Picture:
    """Rotate about the centre, mirrored at the border. DRAEM's code leaves black corners there, which no texture has."""
    size = picture.shape[1::-1]
    matrix = cv2.getRotationMatrix2D(((size[0] - 1) / 2, (size[1] - 1) / 2), rng.uniform(-45, 45), 1.0)
    return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


# DRAEM's ten augmentations, with the ranges of its code (github.com/VitjanZ/DRAEM, data_loader.py), or of imgaug where it sets none.
STRONG = (_gamma, _brightness, _sharpness, _hue_and_saturation, _solarize, _posterize, _invert, _stretched, _equalized, _rotated)


def three_random(picture: Picture, rng: np.random.Generator) -> Picture:
    """Apply three different augmentations of STRONG, in random order (DRAEM, section 3.3)."""
    for index in rng.choice(len(STRONG), size=3, replace=False):
        picture = STRONG[index](picture, rng)
    return picture


def jitter(picture: Picture, settings: AugmentationSettings, rng: np.random.Generator) -> Picture:
    """Change brightness, contrast, saturation and hue, each drawn evenly within the settings.

    All four are affine in colour (the hue as a rotation about the grey axis of YIQ). So they are one matrix, and values are rounded once.
    """
    brightness, contrast, saturation = 1 + rng.uniform(-settings.light, settings.light, size=3)
    turn = 2 * np.pi * rng.uniform(-settings.hue, settings.hue)
    cos, sin = np.cos(turn), np.sin(turn)
    hue = FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ TO_YIQ
    grey = LUMA @ np.array(cv2.mean(picture)[:3]) * brightness  # contrast leaves this grey unchanged
    colour = hue @ (saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1)))
    offset = colour @ np.full(3, (1 - contrast) * grey)
    return cv2.transform(picture, np.column_stack([colour * (contrast * brightness), offset]))


def make_of(picture: Picture, settings: AugmentationSettings, rng: np.random.Generator) -> Picture:
    """Change the appearance as another camera or product does: blur, or add noise, each with p = 2/5 unless the settings turn it off."""
    changed = picture.astype(np.float32)
    if settings.blur and rng.random() < OTHERS:
        changed = _blurred(changed, rng.uniform(0, settings.blur))
    if settings.noise and rng.random() < OTHERS:
        grain = rng.normal(0, 1, picture.shape[:2]).astype(np.float32)
        if rng.random() < 0.5:
            grain = _blurred(grain, rng.uniform(*GRAIN))
        changed += (rng.uniform(0, settings.noise) / max(float(grain.std(dtype=np.float64)), 1e-6) * grain)[..., None]
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def without_colour(picture: Picture) -> Picture:
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def _blurred(pixels: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return cv2.GaussianBlur(pixels, (0, 0), sigma) if sigma > 0.1 else pixels  # a narrower one does not reach the next pixel


def small_affine(size: int, settings: AugmentationSettings, rng: np.random.Generator) -> Affine:
    """Draw a rotation, shear, zoom and shift about the centre, within the settings."""
    angle = np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))
    shear = np.tan(np.deg2rad(rng.uniform(-settings.shear, settings.shear)))
    zoom = 1 + rng.uniform(-settings.zoom, settings.zoom)
    shift = rng.uniform(-settings.shift, settings.shift, size=2) * size
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) / zoom
    centre = np.array([size / 2, size / 2])
    offset = centre - matrix @ (centre + shift)
    return (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])


def warp_picture(picture: Picture, affine: Affine) -> Picture:
    """Warp a picture bilinearly. Beyond its border it is mirrored."""
    return _warp(picture, affine)


def warp_mask(mask: Mask, affine: Affine) -> Mask:
    """Warp a mask like its picture. A pixel is in the mask if most of it is."""
    return _warp(mask.astype(np.uint8) * 255, affine) > 127


def shown(affine: Affine, size: int) -> Mask:
    """Mark the pixels of the input (size, size) that the output of a map shows."""
    return cv2.warpAffine(np.full((size, size), 255, np.uint8), _centred(affine), (size, size)) > 127


def _warp(pixels: Pixels, affine: Affine) -> Pixels:
    return cv2.warpAffine(
        pixels, _centred(affine), pixels.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )


def _centred(affine: Affine) -> NDArray[np.float64]:
    """Return the map in OpenCV's coordinates, from the centre of the first pixel instead of its corner."""
    a, b, c, d, e, f = affine
    return np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
