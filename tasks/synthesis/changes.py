"""The kinds of change: each makes, of one picture, a prompt, a query and the mask of where they differ.

A kind is a function `(picture, other, rng) -> Change`, where `other()` draws a crop of another photograph. Kinds that change the
prompt rather than the query, as inpainting an object away does, fit the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tasks.pictures import Mask, Picture
from tasks.synthesis.perlin import perlin_mask
from tasks.synthesis.photometry import three_random
from tasks.synthesis.settings import Kind


@dataclass(frozen=True)
class Change:
    """Prompt and query HxWx3, and the HxW mask of what differs, all on one grid; geometry and light come after."""

    prompt: Picture
    query: Picture
    mask: Mask


Other = Callable[[], Picture]
Changer = Callable[[Picture, Other, np.random.Generator], Change]

MOST_TRANSPARENT = 0.8  # beta of DRAEM, uniform in [0, 0.8]


def no_change(picture: Picture, other: Other, rng: np.random.Generator) -> Change:
    return Change(picture, picture, np.zeros(picture.shape[:2], dtype=bool))


def local_region(picture: Picture, other: Other, rng: np.random.Generator) -> Change:
    """DRAEM's local change (Zavrtanik et al., ICCV 2021, eq. 2): I_a = (1-M) I + (1-beta) M A + beta M I.

    M is thresholded Perlin noise, A a texture under three random photometric augmentations.
    """
    mask = perlin_mask(picture.shape[0], rng)
    texture = three_random(other(), rng)
    beta = np.float32(rng.uniform(0, MOST_TRANSPARENT))
    query = picture.copy()
    query[mask] = np.rint((1 - beta) * texture[mask] + beta * picture[mask]).astype(np.uint8)
    return Change(picture, query, mask)


def exchange(picture: Picture, other: Other, rng: np.random.Generator) -> Change:
    """A region of another photograph pasted in (MetaUAS, arXiv 2505.09265, section 3.2: object-level change)."""
    opacity = blob(picture.shape[0], rng)
    pasted = opacity[..., None] * other() + (1 - opacity[..., None]) * picture
    return Change(picture, np.rint(pasted).astype(np.uint8), opacity > 0.5)


def blob(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Opacity 0..1 of a random roundish region with an edge about a pixel soft, size x size: an ellipse whose rim wavers."""
    angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    radius = 1.0 + sum(rng.uniform(0, 0.35) / order * np.cos(order * angles + rng.uniform(0, 2 * np.pi)) for order in range(2, 7))
    axes = size * np.exp(rng.uniform(np.log(0.04), np.log(0.28), size=2))
    turn = rng.uniform(0, np.pi)
    centre = rng.uniform(0.1, 0.9, size=2) * size
    along, across = radius * np.cos(angles) * axes[0], radius * np.sin(angles) * axes[1]
    x = centre[0] + along * np.cos(turn) - across * np.sin(turn)
    y = centre[1] + along * np.sin(turn) + across * np.cos(turn)
    region = Image.new("L", (size, size))
    _polygon(region, x, y)
    return np.asarray(region.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2))), dtype=np.float32) / np.float32(255)


def _polygon(region: Image.Image, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    from PIL import ImageDraw

    ImageDraw.Draw(region).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)


CHANGERS: dict[Kind, Changer] = {"local-region": local_region, "exchange": exchange, "none": no_change}
