"""Draw defects along lines: scratches, cracks, fibres, folds and threads."""

from __future__ import annotations

import cv2
import numpy as np

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.synthesis.defects.drawing import (
    REFERENCE,
    Levels,
    Opacity,
    Points,
    Severity,
    laid,
    noise,
    offsets,
    somewhere,
    started,
    strokes,
    toned,
    turned,
    walk,
)

COLOURS = ((20, 20, 25), (235, 235, 230), (40, 60, 150), (160, 40, 40), (120, 90, 60))  # of fibres, RGB


def scratch(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Draw a thin, almost straight line, whose pressure varies."""
    side, angle = len(picture), turned(rng)
    length = severity.size * side
    path = walk(started(side, angle, length, rng), angle, length, 0.03, side / 32, rng)
    line = strokes(side, [(path, rng.uniform(0.8, 2.2) * side / REFERENCE)])
    opacity = line * np.clip(np.float32(0.8) + np.float32(0.6) * noise(side, 12, rng), 0, 1)
    return laid(picture, toned(picture, opacity, severity.contrast, rng), opacity)


def crack(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Draw a dark, jagged line with branches, which taper."""
    side, angle = len(picture), turned(rng)
    length, unit = severity.size * side, side / REFERENCE
    main = walk(started(side, angle, length, rng), angle, length, 0.35, 4 * unit, rng)
    width = rng.uniform(1.2, 2.6) * unit
    lines = _tapering(main, width)
    for _branch in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(main) - 1))
        fork = angle + rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.2)
        lines += _tapering(walk(main[place], fork, rng.uniform(0.2, 0.5) * length, 0.35, 4 * unit, rng), 0.7 * width)
    opacity = strokes(side, lines)
    return laid(picture, toned(picture, opacity, severity.contrast, rng, dark=0.85), opacity)


def _tapering(points: Points, width: float) -> list[tuple[Points, float]]:
    """Split a line into four parts, each thinner than the one before."""
    ends = np.linspace(0, len(points) - 1, 5).round().astype(int)
    pairs = zip(ends[:-1], ends[1:], (1.0, 0.8, 0.6, 0.4), strict=True)
    return [(points[first : last + 1], width * share) for first, last, share in pairs if last > first]


def fibre(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Draw a thin, curved hair or fibre of one colour."""
    side, angle = len(picture), turned(rng)
    length, step = severity.size * side, side / 64
    count = max(3, round(length / step))
    bend = rng.normal(0, 0.08) + np.cumsum(rng.normal(0, 0.05, count))
    angles = angle + np.cumsum(bend)
    path = started(side, angle, length, rng) + step * np.cumsum(np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    opacity = strokes(side, [(path, rng.uniform(0.9, 1.8) * side / REFERENCE)])
    colour = np.array(COLOURS[int(rng.integers(len(COLOURS)))], dtype=np.float32)
    strength = np.float32(min(1.0, 0.4 + severity.contrast))
    return laid(picture, picture + strength * (colour - picture), opacity)


def fold(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Shade a straight crease: light on one side, dark on the other."""
    side = len(picture)
    along, across = offsets(side, somewhere(side, rng), turned(rng))
    width = np.float32(rng.uniform(2.0, 5.0) * side / REFERENCE)
    inside = np.clip(1 - (across / (3 * width)) ** 2, 0, 1)
    shade = np.float32(255 * severity.contrast * 1.4) * (across / width) * inside**2
    return laid(picture, picture + shade[..., None], _band(along, across, severity.size * side, 6 * float(width)))


def missing_thread(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Take a thread out of a fabric: a narrow gap along the picture's direction, without its pattern."""
    side = len(picture)
    width = rng.uniform(2.0, 4.5) * side / REFERENCE
    along, across = offsets(side, somewhere(side, rng), _direction(picture, rng))
    opacity = _band(along, across, severity.size * side, width)
    reach = 2 * round(width) + 1
    ground = cv2.blur(picture, (reach, reach))
    return laid(picture, toned(ground, opacity, severity.contrast, rng, dark=0.8), opacity)


def doubled_thread(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Lay a second thread over a fabric: the pattern next to it, on a raised ridge."""
    side = len(picture)
    width, angle = rng.uniform(3.0, 6.0) * side / REFERENCE, _direction(picture, rng)
    along, across = offsets(side, somewhere(side, rng), angle)
    opacity = _band(along, across, severity.size * side, width)
    move = np.array([[1, 0, width * np.sin(angle)], [0, 1, -width * np.cos(angle)]])
    layer: Levels = cv2.warpAffine(picture, move, (side, side), borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    ridge = np.clip(1 - (2 * across / np.float32(width)) ** 2, 0, 1)
    shade = np.float32(255 * severity.contrast * rng.choice([-1.0, 1.0]))
    return laid(picture, layer + shade * ridge[..., None], opacity)


def _band(along: Opacity, across: Opacity, length: float, width: float) -> Opacity:
    """Return a straight band with edges of one pixel."""
    ends, edges = (np.clip(np.float32(extent / 2 + 0.5) - np.abs(part), 0, 1) for extent, part in ((length, along), (width, across)))
    return ends * edges


def _direction(picture: Picture, rng: np.random.Generator) -> float:
    """Return the angle along the picture's pattern, or across it, in radians: an axis of its structure tensor."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    across, down = (cv2.Sobel(grey, cv2.CV_16S, *order).astype(np.int64) for order in ((1, 0), (0, 1)))
    twice = float(np.arctan2(2 * int((across * down).sum()), int((across * across - down * down).sum())))
    return 0.5 * twice + (np.pi / 2 if rng.random() < 0.5 else 0.0)
