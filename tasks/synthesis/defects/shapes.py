"""Change the shape of what a picture shows: burrs and chips at an edge, and missing or shifted print."""

from __future__ import annotations

import cv2
import numpy as np

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.synthesis.defects.drawing import REFERENCE, Severity, blob, laid, somewhere, turned
from changepair.tasks.synthesis.objects import Dropped

EDGE = 60  # smallest difference of levels across an edge, by a Sobel filter of the blurred picture divided by 4
PRINT = 28  # smallest difference of levels between print and its ground
LEAST_PRINT = 0.002  # smallest share of the picture that is print, within the region that changes
MARGIN = 0.1  # share of the side at the border without edges


def burr(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Let the part stand out over its edge: its material covers some of the ground."""
    return _moved_edge(picture, severity, rng, outwards=True)


def chip(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Break a piece off the part's edge: the ground shows where it was."""
    return _moved_edge(picture, severity, rng, outwards=False)


def _moved_edge(picture: Picture, severity: Severity, rng: np.random.Generator, *, outwards: bool) -> tuple[Picture, Mask]:
    """Move one side of an edge over the other one, within an irregular spot on the edge.

    The part is the side nearer to the picture's middle. Raises Dropped if the picture has no edge.
    """
    side = len(picture)
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (0, 0), 1.5 * side / REFERENCE)
    across, down = (cv2.Sobel(grey, cv2.CV_16S, *order).astype(np.int32) for order in ((1, 0), (0, 1)))
    strength = across**2 + down**2
    border = round(MARGIN * side)
    inner = strength[border : side - border, border : side - border]
    places = np.flatnonzero(inner >= max((4 * EDGE / 2) ** 2, int(np.quantile(inner, 0.98))))
    if not len(places):
        raise Dropped("no edge")
    y, x = (int(part) + border for part in np.unravel_index(int(rng.choice(places)), inner.shape))
    normal = np.array([across[y, x], down[y, x]]) / np.sqrt(float(strength[y, x]))  # towards the brighter side
    middle = np.array([side / 2 - x, side / 2 - y])
    if normal @ middle > 0:  # make it point away from the part
        normal = -normal
    radius = max(2.0, 0.25 * severity.size * side)
    shift = (1.5 if outwards else -1.5) * radius * normal
    layer = cv2.warpAffine(picture, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), (side, side), borderMode=cv2.BORDER_REFLECT)
    centre = np.array([x, y]) + 0.3 * shift
    return laid(picture, layer.astype(np.float32), blob(side, centre.tolist(), radius, rng, rough=0.5))


def missing_print(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Take print, such as a letter or a line, out of a region: its ground shows instead."""
    ground, printed = _print(picture, severity, rng)
    return laid(picture, ground.astype(np.float32), printed.astype(np.float32))


def shifted_print(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Shift the print of a region by a few pixels."""
    side = len(picture)
    ground, printed = _print(picture, severity, rng)
    angle, far = turned(rng), (2.0 + 12.0 * severity.contrast) * side / REFERENCE
    x, y = round(far * np.cos(angle)), round(far * np.sin(angle))
    move = np.array([[1.0, 0, x], [0, 1.0, y]])
    moved = cv2.warpAffine(printed.astype(np.uint8), move, (side, side), flags=cv2.INTER_NEAREST) > 0
    layer = np.where(moved[..., None], cv2.warpAffine(picture, move, (side, side), flags=cv2.INTER_NEAREST), ground)
    return laid(picture, layer.astype(np.float32), (printed | moved).astype(np.float32))


def _print(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Return the picture without its print, and the mask of the print within a round region.

    Print is what differs from the median of its surroundings. Raises Dropped if the region has too little.
    """
    side, unit = len(picture), len(picture) / REFERENCE
    ground = cv2.medianBlur(picture, 2 * round(12 * unit) + 1)
    differs = np.abs(picture.astype(np.int16) - ground).max(axis=2) > PRINT
    x, y = somewhere(side, rng, margin=0.2)
    region = np.zeros((side, side), dtype=np.uint8)
    cv2.circle(region, (round(x), round(y)), max(2, round(0.5 * severity.size * side)), (1,), -1)
    seeds = cv2.morphologyEx((differs & (region > 0)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    printed = (cv2.dilate(seeds, np.ones((3, 3), np.uint8)) > 0) & (region > 0)
    if printed.mean() < LEAST_PRINT:
        raise Dropped("no print")
    return ground, printed
