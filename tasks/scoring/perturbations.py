"""Perturb pictures, to simulate another camera, light or fixture.

A perturbation acts on a decoded picture at full size. Directions, positions and noise are drawn for each picture and perturbation, so the
result does not depend on other pictures, the process or the order. Lengths are given for a shorter side of SIDE pixels. Noise, JPEG and
`resolution` act on the pixels of the picture itself. A shift or a rotation fills the border with mirrored pixels.
"""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
from PIL import Image

from changepair.tasks.common.decoding import open_image
from changepair.tasks.common.pictures import Picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.scoring.perturbation_names import perturbation_of

SIDE = 256  # pixels of the shorter side that lengths are given for
LEVELS = np.arange(256, dtype=np.float64)
ROWS = 512  # rows whose float values are held at once


def perturbed(picture: Picture, name: str, key: str) -> Picture:
    """Perturb a picture (H, W, 3). Only `crop` changes its size.

    name: a perturbation, such as `jpeg-50`. key: identifies the picture, such as the hash of its file. It seeds the draws. Raises
    ValueError for an unknown name.
    """
    perturbation = perturbation_of(name)
    return PERTURB[perturbation.kind](picture, perturbation.strength, generator(0, "perturbation", str(perturbation), key))


def _jpeg(picture: Picture, quality: float, rng: np.random.Generator) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=int(quality))
    with open_image(stream) as image:
        return np.array(image)


def _blur(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    """Blur with a Gaussian. OpenCV computes it in fixed point, so the bytes are the same on every processor."""
    return cv2.GaussianBlur(picture, (0, 0), sigma * _unit(picture), borderType=cv2.BORDER_REFLECT)


def _noise(picture: Picture, deviation: float, rng: np.random.Generator) -> Picture:
    """Add independent Gaussian noise to each pixel and channel."""
    noisy = np.empty_like(picture)
    for start in range(0, len(picture), ROWS):
        part = picture[start : start + ROWS]
        noisy[start : start + ROWS] = _levels(part + np.float32(deviation) * rng.standard_normal(part.shape, dtype=np.float32))
    return noisy


def _gain(picture: Picture, factor: float, rng: np.random.Generator) -> Picture:
    return cv2.LUT(picture, _levels(factor * LEVELS))


def _gamma(picture: Picture, exponent: float, rng: np.random.Generator) -> Picture:
    return cv2.LUT(picture, _levels(255 * (LEVELS / 255) ** exponent))


def _side_light(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Multiply by a plane: 1 + strength at one corner or edge, 1 at the centre, 1 - strength at the opposite one."""
    angle = rng.uniform(0, 2 * math.pi)
    across, down = math.cos(angle), math.sin(angle)
    columns, rows = (np.linspace(-1, 1, side, dtype=np.float32) for side in picture.shape[1::-1])
    slope = strength / (abs(across) + abs(down))
    lit = np.empty_like(picture)
    for start in range(0, len(picture), ROWS):
        light = 1 + slope * (across * columns[None] + down * rows[start : start + ROWS, None])
        lit[start : start + ROWS] = _levels(picture[start : start + ROWS] * light[..., None])
    return lit


def _shift(picture: Picture, distance: float, rng: np.random.Generator) -> Picture:
    """Shift in a drawn direction, bilinear."""
    angle, length = rng.uniform(0, 2 * math.pi), distance * _unit(picture)
    return _warped(picture, 0.0, (length * math.cos(angle), length * math.sin(angle)), math.ceil(length) + 1)


def _rotation(picture: Picture, degrees: float, rng: np.random.Generator) -> Picture:
    """Rotate about the centre, to a drawn side, bilinear."""
    turn = degrees * (1 if rng.random() < 0.5 else -1)
    height, width = picture.shape[:2]
    return _warped(picture, math.radians(turn), (0.0, 0.0), math.ceil((math.hypot(height, width) - min(height, width)) / 2) + 1)


def _resolution(picture: Picture, share: float, rng: np.random.Generator) -> Picture:
    """Reduce by averaging, and enlarge to the earlier size (bicubic)."""
    height, width = picture.shape[:2]
    small = Image.fromarray(picture).resize((max(1, round(share * width)), max(1, round(share * height))), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def _crop(picture: Picture, share: float, rng: np.random.Generator) -> Picture:
    """Cut out a part at a drawn position."""
    sides = [max(1, round(share * side)) for side in picture.shape[:2]]
    top, left = (int(rng.integers(0, side - kept + 1)) for side, kept in zip(picture.shape[:2], sides, strict=True))
    return np.ascontiguousarray(picture[top : top + sides[0], left : left + sides[1]])


PERTURB = {
    "jpeg": _jpeg,
    "blur": _blur,
    "noise": _noise,
    "gain": _gain,
    "gamma": _gamma,
    "side-light": _side_light,
    "shift": _shift,
    "rotation": _rotation,
    "resolution": _resolution,
    "crop": _crop,
}


def _unit(picture: Picture) -> float:
    """Return the pixels of the picture in one pixel of a side of SIDE."""
    return min(picture.shape[:2]) / SIDE


def _levels(values: np.ndarray) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _warped(picture: Picture, angle: float, shift: tuple[float, float], margin: int) -> Picture:
    """Rotate about the centre (radians), then shift (columns, rows), bilinear. margin: mirrored pixels that this may move inside."""
    height, width = picture.shape[:2]
    around = Image.fromarray(np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric"))
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2 + shift[0], height / 2 + shift[1]  # where the centre moves to
    affine = (cos, sin, width / 2 + margin - cos * x - sin * y, -sin, cos, height / 2 + margin + sin * x - cos * y)
    return np.array(around.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))
