"""Change a whole picture: its colour, contrast, weave or focus. No single place has changed, so there is no mask."""

from __future__ import annotations

import cv2
import numpy as np

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.synthesis.defects.drawing import LEAST_VISIBLE, REFERENCE, Severity
from changepair.tasks.synthesis.objects import Dropped

LEAST = 0.25
"""Least contrast. Below it, the change would be as small as that of light and lens between any prompt and query."""


def colour(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Tint the picture: one channel is amplified and another one weakened."""
    gains = 1 + _contrast(severity) * rng.permutation([1.0, rng.uniform(-0.3, 0.3), -1.0])
    return _finished(picture, cv2.transform(picture, np.diag(gains)))


def contrast(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Stretch or flatten all levels about their mean."""
    amount = 1.5 * _contrast(severity)
    factor = 1 + amount if rng.random() < 0.5 else 1 / (1 + amount)
    mean = np.array(cv2.mean(picture)[:3])
    return _finished(picture, cv2.transform(picture, np.column_stack([factor * np.eye(3), (1 - factor) * mean])))


def weave(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Make the pattern coarser, by enlarging the middle of the picture."""
    side = len(picture)
    zoom = 1 + _contrast(severity)
    first = round(0.5 * side * (1 - 1 / zoom))
    middle = picture[first : side - first, first : side - first]
    return _finished(picture, cv2.resize(middle, (side, side), interpolation=cv2.INTER_CUBIC))


def focus(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Blur the picture. The sigma grows with the contrast."""
    return _finished(picture, cv2.GaussianBlur(picture, (0, 0), (0.5 + 6 * _contrast(severity)) * len(picture) / REFERENCE))


def _contrast(severity: Severity) -> float:
    return max(LEAST, severity.contrast)


def _finished(before: Picture, after: Picture) -> tuple[Picture, Mask]:
    """Return the changed picture and an empty mask. Raises Dropped if the change is invisible."""
    if cv2.absdiff(before, after).mean(dtype=np.float64) < 0.5 * LEAST_VISIBLE:
        raise Dropped("change invisible")
    return after, np.zeros(before.shape[:2], dtype=bool)
