"""Draw contact sheets, which are rows of small pictures with text, and overlays of maps and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from changepair.tasks.common.pictures import Mask, Picture

TILE, GAP = 128, 4  # pixels: the side of a picture, and the gap around it
ABOVE, BESIDE, BETWEEN = 24, 150, 10  # pixels: for text above a picture, for text left of a row, and between two rows side by side
SIZE, LEADING = 12, 18  # pixels: font size, and distance between lines of text
PAPER, INK, MARK = (250, 250, 248), (30, 30, 30), (230, 40, 60)
OTHER_MARK, NEAR = (0, 230, 230), 110  # the mark on pictures whose mean colour is within this distance of MARK
CALM = (60, 110, 220)  # colour of map values that normal pictures reach
WARM = (0.62, 0.97)  # range of the colour map turbo for greater values, from yellow to dark red
STEPS = 256  # steps of the colour scale up to the value that normal pictures reach; there are as many above
ROWS = 256  # rows of a picture that are drawn at once


@dataclass(frozen=True)
class SheetRow:
    """Pictures side by side, each TILE x TILE, with text above each of them, and in a column to their left."""

    tiles: Sequence[Picture] = ()
    above: Sequence[str] = ()
    beside: Sequence[str] = ()

    @property
    def height(self) -> int:
        return (ABOVE if self.above else 0) + (TILE + GAP if len(self.tiles) else 0)


def contact_sheet(lines: Sequence[SheetRow], abreast: int = 1) -> Image.Image:
    """Draw rows below one another. With `abreast`, draw that many rows of equal height side by side."""
    start = BESIDE if any(line.beside for line in lines) else GAP
    columns = max((max(len(line.tiles), len(line.above)) for line in lines), default=0)
    width = start - GAP + columns * (TILE + GAP) + (BETWEEN if abreast > 1 else GAP)
    sheet = Image.new("RGB", (abreast * width, sum(line.height for line in lines[::abreast]) + GAP), PAPER)
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE), 0
    for place, line in enumerate(lines):
        left = place % abreast * width
        for number, words in enumerate(line.beside):
            draw.text((left + GAP, top + GAP + number * LEADING), words, fill=INK, font=font)
        for column, words in enumerate(line.above):
            draw.text((left + start + column * (TILE + GAP), top + 6), words, fill=INK, font=font)
        for column, tile in enumerate(line.tiles):
            sheet.paste(Image.fromarray(tile), (left + start + column * (TILE + GAP), top + (ABOVE if line.above else 0)))
        if (place + 1) % abreast == 0:
            top += line.height
    return sheet


def heated(picture: Picture, map_: NDArray[np.floating], top: float) -> Picture:
    """Overlay an anomaly map (H, W) on a picture (H, W, 3). All overlays use this colour scale.

    Values up to `top`, which normal pictures reach, are uncoloured to faint blue. Greater values are yellow to dark red, which starts at
    twice `top`. `top` is described at `Predictor.top`; 0 means unknown, and half of the map's maximum replaces it.
    """
    scale = STEPS / max(top or float(map_.max()) / 2, 1e-6)
    added, kept = _heat()
    drawn = np.empty_like(picture)
    for start in range(0, len(picture), ROWS):  # so that a large picture takes little memory
        rows = slice(start, start + ROWS)
        step = np.clip(np.ceil(map_[rows] * scale - 1e-3), 0, 2 * STEPS).astype(np.intp)
        drawn[rows] = added[step] + kept[step, None] * picture[rows]
    return drawn


@cache
def _heat() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return, for each of N steps of the colour scale, the colour to add (N, 3) and the share of the picture to keep (N,)."""
    from matplotlib import colormaps  # takes half a second to import

    ratio = np.arange(2 * STEPS + 1) / STEPS
    over = ratio > 1
    warm = colormaps["turbo"](WARM[0] + (WARM[1] - WARM[0]) * np.clip(ratio - 1, 0, 1))[:, :3] * 255
    opacity = np.where(over, 0.45 + 0.3 * (ratio - 1), 0.25 * ratio)
    colour = np.where(over[:, None], warm, CALM)
    return (opacity[:, None] * colour).astype(np.float32), (1 - opacity).astype(np.float32)


def outlined(picture: Picture, mask: Mask) -> Picture:
    """Draw the outline of the masked region into a copy of a picture, one pixel wide."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    drawn = picture.copy()
    drawn[mask & ~inner] = MARK
    return drawn


def tinted(picture: Picture, mask: Mask) -> Picture:
    """Tint the masked region in a copy of a picture: red, or cyan if the region is red."""
    drawn = picture.copy()
    if mask.any():
        reddish = np.linalg.norm(picture[mask].mean(axis=0) - MARK) < NEAR
        drawn[mask] = (0.5 * drawn[mask] + 0.5 * np.array(OTHER_MARK if reddish else MARK)).astype(np.uint8)
    return drawn
