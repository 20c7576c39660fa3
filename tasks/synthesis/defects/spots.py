"""Draw defects in spots: stains, spills, pits, dents, dust, corrosion, discolouration, defocus, over-exposure and smears."""

from __future__ import annotations

import cv2
import numpy as np

from changepair.tasks.common.pictures import Mask, Picture
from changepair.tasks.synthesis.defects.drawing import REFERENCE, Severity, blob, laid, noise, offsets, somewhere, toned, turned

RUST = ((95, 45, 15), (175, 85, 40))  # darkest and lightest colour of corrosion, RGB


def stain(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Tint an irregular spot. Its rim is darker, as that of a dried liquid."""
    side, centre, radius = len(picture), somewhere(len(picture), rng), _radius(picture, severity)
    opacity = blob(side, centre, radius, rng, rough=0.6, soft=3 * side / REFERENCE)
    along, across = offsets(side, centre, 0.0)
    rim = np.clip((along**2 + across**2) / np.float32(radius**2), 0, 1)
    tint = rng.uniform(0.3, 1.0, 3)
    tint = (tint / tint.max()).astype(np.float32)  # the strongest channel darkens by `contrast`
    shade = np.float32(255 * severity.contrast) * (np.float32(0.6) + np.float32(0.6) * rim)
    return laid(picture, picture - shade[..., None] * tint, opacity)


def spill(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Pour a liquid of one colour: a pool and its splashes, with a highlight."""
    side, centre, radius = len(picture), somewhere(len(picture), rng), 0.6 * _radius(picture, severity)
    opacity = blob(side, centre, radius, rng, rough=0.4)
    for _splash in range(int(rng.integers(2, 7))):
        angle, far = turned(rng), rng.uniform(1.0, 1.6) * radius
        place = centre[0] + far * np.cos(angle), centre[1] + far * np.sin(angle)
        drop = blob(side, place, rng.uniform(0.1, 0.3) * radius, rng, rough=0, stretch=rng.uniform(1, 3), angle=angle)
        opacity = np.maximum(opacity, drop)
    layer = toned(picture, opacity, severity.contrast, rng, dark=0.7) * rng.uniform(0.7, 1.0, 3).astype(np.float32)
    light = blob(side, (centre[0] - 0.3 * radius, centre[1] - 0.3 * radius), 0.25 * radius, rng, rough=0, soft=0.2 * radius)
    return laid(picture, layer + np.float32(255 * severity.contrast) * light[..., None], opacity)


def pit(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Sink one to five small round holes, dark inside and lit at the rim that faces the light."""
    side, reach, light = len(picture), _radius(picture, severity), turned(rng)
    centre = somewhere(side, rng)
    shade, opacity = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    for _hole in range(int(rng.integers(1, 6))):
        radius = min(rng.uniform(2.0, 6.0) * side / REFERENCE, reach)
        place = [part + rng.uniform(-1, 1) * (reach - radius) for part in centre]
        along, across = offsets(side, place, light)
        far = np.sqrt(along**2 + across**2) / np.float32(radius)
        rim = np.clip(1 - np.abs(far - np.float32(1.1)) / np.float32(0.4), 0, 1) * np.clip(along / np.float32(radius), 0, 1)
        shade += rim - np.clip(np.float32(1.3) * (1 - far**2), 0, 1)
        opacity = np.maximum(opacity, np.clip((np.float32(1.4) - far) * np.float32(radius), 0, 1))
    return laid(picture, picture + np.float32(255 * severity.contrast) * shade[..., None], opacity)


def dent(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Shade a smooth hollow as light from one side does: its slope (Lambert), without a change of colour."""
    side, radius = len(picture), _radius(picture, severity)
    along, across = offsets(side, somewhere(side, rng), turned(rng))
    flat = np.float32(rng.uniform(0.6, 1.0))  # the hollow may be oval
    square = (along**2 + (across / flat) ** 2) / np.float32(radius**2)
    slope = np.clip(1 - square, 0, 1) * along / np.float32(0.385 * radius)  # 0.385 is the maximum of r(1 - r²)
    opacity = np.clip((1 - np.sqrt(square)) * np.float32(radius) + np.float32(0.5), 0, 1)
    return laid(picture, picture + np.float32(255 * severity.contrast) * slope[..., None], opacity)


def dust(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Scatter 5 to 60 specks over a round region."""
    side, reach, centre = len(picture), _radius(picture, severity), somewhere(len(picture), rng)
    specks = np.zeros((side, side), dtype=np.uint8)
    for _speck in range(int(rng.integers(5, 61))):
        angle, far = turned(rng), reach * np.sqrt(rng.random())
        x, y = (round(16 * (part + far * turn)) for part, turn in zip(centre, (np.cos(angle), np.sin(angle)), strict=True))
        cv2.circle(specks, (x, y), round(16 * rng.uniform(0.6, 1.8) * side / REFERENCE), (255,), -1, cv2.LINE_AA, 4)
    opacity = specks.astype(np.float32) / np.float32(255)
    return laid(picture, toned(picture, opacity, severity.contrast, rng), opacity)


def corrosion(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Eat into a spot: brown grains, dense in the middle and sparse at the rim."""
    side, radius = len(picture), _radius(picture, severity)
    whole = blob(side, somewhere(side, rng), radius, rng, rough=0.7, soft=0.6 * radius)
    grains = noise(side, 40, rng)
    opacity = whole * np.clip(np.float32(4) * (grains + whole - np.float32(0.6)), 0, 1)
    dark, light = (np.array(colour, dtype=np.float32) for colour in RUST)
    rust = dark + (light - dark) * np.clip(np.float32(0.5) + noise(side, 24, rng), 0, 1)[..., None]
    return laid(picture, picture + np.float32(min(1.0, 0.3 + severity.contrast)) * (rust - picture), opacity)


def discolouration(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Change the colour of a soft spot, by one factor for each channel."""
    gains = 1 + severity.contrast * rng.permutation([1.0, rng.uniform(-0.5, 0.5), -1.0])
    return laid(picture, picture * gains.astype(np.float32), _soft(picture, severity, rng))


def defocus(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Blur a soft spot. The sigma grows with the contrast."""
    sigma = (1.0 + 8.0 * severity.contrast) * len(picture) / REFERENCE
    return laid(picture, cv2.GaussianBlur(picture, (0, 0), sigma).astype(np.float32), _soft(picture, severity, rng))


def overexposure(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Brighten a soft spot, so that its brightest pixels are saturated."""
    light = np.float32(1 + 2 * severity.contrast)
    return laid(picture, picture * light + np.float32(127 * severity.contrast), _soft(picture, severity, rng))


def smear(picture: Picture, severity: Severity, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Wipe the pattern along a direction within a long spot."""
    side, angle = len(picture), turned(rng)
    length = max(5, round(severity.size * side * (0.2 + severity.contrast)) | 1)
    line, half = np.zeros((length, length), np.uint8), length // 2
    end = round(half * np.cos(angle)), round(half * np.sin(angle))
    cv2.line(line, (half - end[0], half - end[1]), (half + end[0], half + end[1]), (1,))
    opacity = blob(side, somewhere(side, rng), 0.5 * _radius(picture, severity), rng, stretch=2.0, angle=angle, soft=3 * side / REFERENCE)
    layer = picture.astype(np.float32)
    x, y, width, height = cv2.boundingRect((opacity > 0).astype(np.uint8))
    rows, columns = (slice(max(0, first - half), first + extent + half) for first, extent in ((y, height), (x, width)))
    kernel = line.astype(np.float32) / int(line.sum())
    layer[rows, columns] = cv2.filter2D(layer[rows, columns], -1, kernel, borderType=cv2.BORDER_REFLECT)
    return laid(picture, layer, opacity)


def _radius(picture: Picture, severity: Severity) -> float:
    return max(2.0, 0.5 * severity.size * len(picture))


def _soft(picture: Picture, severity: Severity, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    radius = _radius(picture, severity)
    return blob(len(picture), somewhere(len(picture), rng), radius, rng, rough=0.3, soft=0.4 * radius)
