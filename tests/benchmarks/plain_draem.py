"""DRAEM's recipe in plain NumPy, whole arrays at a time, as one writes it from the paper: what our own is held against.

The same steps as a local-region pair of ours: two squares cut from photographs, Perlin noise of a random frequency an axis turned
by up to 90 degrees and thresholded, three random augmentations of the texture, the blend, and then a small affine map and a change
of light for query and prompt each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pair(photos: list[Array], size: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Query and prompt HxWx3 in [0, 1], mask HxW of 0 and 1. photos: HxWx3 in [0, 1]."""
    first, second = rng.choice(len(photos), size=2, replace=False)
    mask = np.zeros((size, size))
    while not 0.002 <= mask.mean() <= 0.5:
        mask = perlin_mask(size, rng)
    picture, texture = square(photos[first], size, rng), square(photos[second], size, rng)
    for index in rng.choice(len(AUGMENTATIONS), size=3, replace=False):
        texture = np.clip(AUGMENTATIONS[index](texture, rng), 0, 1)
    beta, m = rng.uniform(0, 0.8), mask[..., None]
    query = (1 - m) * picture + (1 - beta) * m * texture + beta * m * picture
    to_query, to_prompt = affine(size, rng), affine(size, rng)
    moved = warp(np.dstack([query, mask]), to_query)
    return jitter(moved[..., :3], rng), jitter(warp(picture, to_prompt), rng), (moved[..., 3] > 0.5).astype(float)


def square(photo: Array, size: int, rng: np.random.Generator) -> Array:
    height, width = photo.shape[:2]
    side = int(rng.uniform(0.4, 1.0) * min(height, width))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    steps = (np.arange(size) + 0.5) * side / size - 0.5
    rows, columns = np.meshgrid(top + steps, left + steps, indexing="ij")
    picture_out = bilinear(photo, rows, columns)
    return picture_out[:, ::-1] if rng.random() < 0.5 else picture_out


def perlin_mask(size: int, rng: np.random.Generator) -> Array:
    frequency = 2 ** rng.integers(0, 6, size=2)
    angles = 2 * np.pi * rng.random((frequency[0] + 1, frequency[1] + 1))
    gradients = np.dstack([np.cos(angles), np.sin(angles)])
    cell = (size // frequency[0], size // frequency[1])
    grid = np.mgrid[0 : frequency[0] : frequency[0] / size, 0 : frequency[1] : frequency[1] / size].transpose(1, 2, 0) % 1

    def tile(rows: slice, columns: slice) -> Array:
        return gradients[rows, columns].repeat(cell[0], axis=0).repeat(cell[1], axis=1)

    low, high = slice(0, -1), slice(1, None)
    n00 = (grid * tile(low, low)).sum(-1)
    n10 = ((grid - [1, 0]) * tile(high, low)).sum(-1)
    n01 = ((grid - [0, 1]) * tile(low, high)).sum(-1)
    n11 = ((grid - [1, 1]) * tile(high, high)).sum(-1)
    fade = 6 * grid**5 - 15 * grid**4 + 10 * grid**3
    upper = n00 + fade[..., 0] * (n10 - n00)
    lower = n01 + fade[..., 0] * (n11 - n01)
    noise = np.sqrt(2) * (upper + fade[..., 1] * (lower - upper))
    turn = np.deg2rad(rng.uniform(-90, 90))
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    turned_rows = np.cos(turn) * rows - np.sin(turn) * columns + (size - 1) / 2
    turned_columns = np.sin(turn) * rows + np.cos(turn) * columns + (size - 1) / 2
    return (bilinear(noise[..., None], turned_rows, turned_columns)[..., 0] > 0.5).astype(float)


def affine(size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    angle, shear = np.deg2rad(rng.uniform(-5, 5)), np.tan(np.deg2rad(rng.uniform(-2, 2)))
    zoom, shift = 1 + rng.uniform(-0.06, 0.06), rng.uniform(-0.04, 0.04, size=2) * size
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.array([[1, shear], [0, 1]]) / zoom
    places = np.stack(np.mgrid[:size, :size] - size / 2, axis=-1) @ matrix.T + size / 2 + shift
    return places[..., 0], places[..., 1]


def warp(picture: Array, places: tuple[Array, Array]) -> Array:
    size = len(picture)
    rows, columns = (np.abs(np.where(place > size - 1, 2 * (size - 1) - place, place)) for place in places)
    return bilinear(picture, rows, columns)


def bilinear(picture: Array, rows: Array, columns: Array) -> Array:
    rows, columns = np.clip(rows, 0, picture.shape[0] - 1), np.clip(columns, 0, picture.shape[1] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, picture.shape[0] - 1), np.minimum(left + 1, picture.shape[1] - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    return upper * (1 - down) + lower * down


def jitter(picture: Array, rng: np.random.Generator) -> Array:
    picture = np.clip(picture * (1 + rng.uniform(-0.2, 0.2)), 0, 1)
    mean = grey(picture).mean()
    picture = np.clip(mean + (picture - mean) * (1 + rng.uniform(-0.2, 0.2)), 0, 1)
    picture = np.clip(saturated(picture, 1 + rng.uniform(-0.2, 0.2)), 0, 1)
    return turned_hue(picture, rng.uniform(-0.02, 0.02))


def grey(picture: Array) -> Array:
    return picture @ np.array([0.299, 0.587, 0.114])


def saturated(picture: Array, factor: float) -> Array:
    plain = grey(picture)[..., None]
    return plain + (picture - plain) * factor


def turned_hue(picture: Array, turn: float) -> Array:
    """Turns to hue, saturation and value, and back (Smith, SIGGRAPH 1978)."""
    high, low = picture.max(-1), picture.min(-1)
    spread = np.where(high > low, high - low, 1)
    red, green, blue = np.moveaxis(picture, -1, 0)
    hue = (
        np.where(high == red, (green - blue) / spread % 6, np.where(high == green, (blue - red) / spread + 2, (red - green) / spread + 4))
        / 6
    )
    saturation = np.where(high > 0, (high - low) / np.where(high > 0, high, 1), 0)
    hue = (hue + turn) % 1 * 6
    sector, part = np.floor(hue).astype(int) % 6, hue - np.floor(hue)
    p, q, t = high * (1 - saturation), high * (1 - part * saturation), high * (1 - (1 - part) * saturation)
    choices = [(high, t, p), (q, high, p), (p, high, t), (p, q, high), (t, p, high), (high, p, q)]
    return np.stack([np.choose(sector, [choice[channel] for choice in choices]) for channel in range(3)], axis=-1)


def sharpened(picture: Array, factor: float) -> Array:
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    size = picture.shape[:2]
    smooth = sum(weights[i, j] * padded[i : i + size[0], j : j + size[1]] for i in range(3) for j in range(3))
    return smooth + (picture - smooth) * factor


def stretched(picture: Array) -> Array:
    low, high = picture.min((0, 1)), picture.max((0, 1))
    return (picture - low) / np.maximum(high - low, 1e-6)


def equalized(picture: Array) -> Array:
    levels = (picture * 255).astype(int)
    picture_out = np.empty_like(picture)
    for channel in range(3):
        cumulated = np.bincount(levels[..., channel].ravel(), minlength=256).cumsum()
        picture_out[..., channel] = (cumulated / cumulated[-1])[levels[..., channel]]
    return picture_out


AUGMENTATIONS: tuple[Callable[[Array, np.random.Generator], Array], ...] = (
    lambda picture, rng: picture ** rng.uniform(0.5, 2.0),
    lambda picture, rng: picture * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30) / 255,
    lambda picture, rng: turned_hue(picture, rng.uniform(-0.2, 0.2)),
    lambda picture, rng: sharpened(picture, rng.uniform(1.5, 4.0)),
    lambda picture, rng: saturated(picture, rng.uniform(0.2, 2.0)),
    lambda picture, rng: np.where(picture > rng.integers(32, 128) / 255, 1 - picture, picture),
    lambda picture, rng: np.floor(picture * 2 ** rng.integers(3, 7)) / 2 ** rng.integers(3, 7),
    lambda picture, rng: 1 - picture,
    lambda picture, rng: stretched(picture),
    lambda picture, rng: equalized(picture),
)
