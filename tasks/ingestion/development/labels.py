"""Draw five printed labels with text, bars and a logo: missing print, a wrong character, a double print, shifted print, a wrong colour.

The text of a category is fixed, and its print varies slightly in place and strength. The set decides about fine structure: resolution,
scales and matching by position. It says nothing about texture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from changepair.tasks.common.randomness import generator
from changepair.tasks.ingestion.development.rendering import (
    FINE,
    GOOD,
    Colour,
    Ink,
    Rng,
    Scenes,
    grain,
    mixed,
    photograph,
    put,
    write_scenes,
)
from changepair.tasks.ingestion.texture_defects import SEED, SIZE

DEFECTS = ("missing", "character", "double", "shifted", "colour")
CHARACTERS = "ABCDEFGHKLMNPRSTUVXYZ0123456789"  # pragma: allowlist secret


@dataclass(frozen=True)
class Print:
    """Text, bars whose widths follow from their text, or a logo, centred at x and y pixels from the label's middle."""

    kind: str
    text: str
    x: float
    y: float
    size: float  # pixels: height of the text or bars, or radius of the logo
    ink: Ink = (34, 32, 36)
    wrong: Ink = (60, 70, 160)


@dataclass(frozen=True)
class Label:
    prints: tuple[Print, ...]
    paper: Ink
    under: Ink
    size: tuple[float, float]  # width and height in pixels
    turn: float = 1.0  # degrees, the largest
    shift: float = 3.0  # pixels, the largest
    gloss: float = 0.0  # contrast of a streak of light in grey levels


def write(folder: Path) -> None:
    """Write each label to folder/<category> in MVTec AD's layout, masks included."""
    write_scenes(folder, CATEGORIES)


def _draw(label: Label, rng: Rng, kind: str, other: Rng) -> Colour:
    jitter, strength = rng.uniform(-1, 1, 2), rng.uniform(0.86, 1.0)
    prints, ghost = (label.prints, None) if kind == GOOD else _altered(label.prints, kind, other)
    sheet = Image.new("RGBA", (SIZE * FINE,) * 2)
    pen = ImageDraw.Draw(sheet)
    middle, half = SIZE * FINE / 2, np.asarray(label.size) * FINE / 2
    pen.rounded_rectangle((*(middle - half), *(middle + half)), radius=8, fill=_levels(label.paper))
    if ghost:
        _stamp(pen, replace(ghost, ink=mixed(ghost.ink, label.paper, 0.6)))
    for each in prints:
        colour = mixed(each.ink, label.paper, strength)
        _stamp(pen, replace(each, x=each.x + jitter[0], y=each.y + jitter[1], ink=colour))
    angle, shift = np.deg2rad(rng.uniform(-1, 1) * label.turn), rng.uniform(-1, 1, 2) * label.shift * FINE
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = middle + shift[0], middle + shift[1]
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    placed = np.asarray(sheet.transform(sheet.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR).reduce(FINE), np.float32)
    under = np.asarray(label.under, np.float32) + (5 * grain(rng, 1, 14) + 4 * grain(rng, 30))[..., None]
    sheen = label.gloss * np.exp(-((grain(rng, 40) - rng.uniform(-1, 1)) ** 2) * 2) + 1.5 * grain(rng, 0.8) + 2 * grain(rng, 3)
    cover, coat = placed[..., 3] / 255, placed[..., :3] + sheen[..., None]
    return photograph(put(under, cover, coat, light=-2.3, bevel=1, relief=0.5, shadow=2), rng)


def _altered(prints: tuple[Print, ...], kind: str, other: Rng) -> tuple[tuple[Print, ...], Print | None]:
    """Return the prints with one defect, and a second, weaker print over one of them."""
    written = [index for index, each in enumerate(prints) if each.kind == "text"]
    index = int(other.choice(written)) if kind == "character" else int(other.integers(len(prints)))
    each = prints[index]
    if kind == "double":
        return prints, replace(each, x=each.x + other.choice([-1, 1]) * other.uniform(2, 4), y=each.y + other.uniform(-3, 3))
    changed = {
        "missing": lambda: _without(each, other),
        "character": lambda: replace(each, text=_miswritten(each.text, other)),
        "shifted": lambda: replace(each, x=each.x + other.choice([-1, 1]) * other.uniform(5, 9), y=each.y + other.uniform(-4, 4)),
        "colour": lambda: replace(each, ink=mixed(each.ink, each.wrong, 0.4)),
    }[kind]()
    return (*prints[:index], changed, *prints[index + 1 :]), None


def _without(each: Print, other: Rng) -> Print:
    """Leave out a print, or, of a longer text, some characters in its middle."""
    if each.kind != "text" or len(each.text) < 6:
        return replace(each, size=0)
    start = int(other.integers(1, len(each.text) - 3))
    return replace(each, text=f"{each.text[:start]}\0\0\0{each.text[start + 3 :]}")


def _miswritten(text: str, other: Rng) -> str:
    """Exchange one character."""
    index = int(other.choice([index for index, character in enumerate(text) if character != " "]))
    wrong = other.choice([character for character in CHARACTERS if character != text[index]])
    return f"{text[:index]}{wrong}{text[index + 1 :]}"


def _stamp(pen: ImageDraw.ImageDraw, each: Print) -> None:
    x, y, size, ink = SIZE * FINE / 2 + each.x * FINE, SIZE * FINE / 2 + each.y * FINE, each.size * FINE, _levels(each.ink)
    if not size:
        return
    if each.kind == "text":
        font = _font(size)
        width = 0.62 * size  # of every character, so that a wrong one does not move the others
        for place, character in enumerate(each.text):
            if character.strip("\0 "):
                pen.text((x + (place - (len(each.text) - 1) / 2) * width, y), character, fill=ink, font=font, anchor="mm")
    elif each.kind == "bars":
        widths = generator(SEED, "bars", each.text).integers(1, 4, size=60) * FINE
        ends = np.cumsum(widths) + x - widths.sum() / 2
        for start, end in zip(ends[0::2], ends[1::2], strict=True):
            pen.rectangle((start, y - size / 2, end - 1, y + size / 2), fill=ink)
    else:
        angles = np.linspace(-np.pi / 2, 1.5 * np.pi, 2 * len(each.text) + 1)[:-1]
        rim = np.where(np.arange(len(angles)) % 2, 0.45, 1) * size
        pen.polygon([(float(x + r * np.cos(at)), float(y + r * np.sin(at))) for r, at in zip(rim, angles, strict=True)], fill=ink)
        pen.ellipse((x - 0.25 * size, y - 0.25 * size, x + 0.25 * size, y + 0.25 * size), fill=(255, 255, 255))


def _levels(colour: Ink) -> tuple[int, ...]:
    return tuple(int(level) for level in colour)


@cache
def _font(size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _text(text: str, x: float, y: float, size: float, ink: Ink = (34, 32, 36), wrong: Ink = (60, 70, 160)) -> Print:
    return Print("text", text, x, y, size, ink, wrong)


_RED, _BLUE, _GREEN, _WHITE = (176, 38, 42), (32, 62, 130), (40, 104, 70), (236, 236, 230)
LABELS: dict[str, Label] = {
    "parcel": Label(
        (
            *(_text("EXPRESS", -26, -78, 26), Print("logo", "*****", 84, -78, 18, _RED, _BLUE), _text("ZONE 7B", -60, -46, 17)),
            *(_text("NORTH DEPOT", -36, -24, 14), Print("bars", "parcel", 0, 18, 52), _text("40 1793 2250 86", 0, 56, 14)),
            *(_text("2.4 KG", -66, 82, 16), _text("1/1", 70, 82, 20)),
        ),
        *((240, 238, 230), (158, 122, 84), (214, 206)),
    ),
    "medicine": Label(
        (
            *(_text("CALMIROL", -16, -44, 28, _BLUE, _GREEN), _text("500 MG", -48, -16, 18, _RED, _BLUE)),
            *(_text("20 TABLETS", -42, 8, 13, _BLUE, _RED), Print("logo", "******", 76, -2, 17, _GREEN, _RED)),
            *(_text("LOT 84A21", -46, 40, 13), _text("EXP 09 28", 52, 40, 13)),
        ),
        *((246, 246, 244), (196, 206, 212), (222, 136)),
    ),
    "rating": Label(
        (
            *(_text("MOTOR M3", -34, -60, 20), Print("logo", "****", 76, -56, 15), _text("230 V 50 HZ", -22, -30, 15)),
            *(_text("0.75 KW", -44, -6, 15), _text("IP 54", 58, -6, 15), _text("1420 RPM", -38, 18, 15)),
            *(_text("SN 77310458", -20, 44, 15), Print("bars", "rating", 0, 68, 14)),
        ),
        *((184, 186, 190), (58, 72, 84), (200, 172)),
        gloss=26,
    ),
    "tag": Label(
        (
            *(Print("logo", "********", 0, -52, 24, (232, 196, 92), _WHITE), _text("ORCHARD", 0, -10, 24, _WHITE, (220, 150, 140))),
            *(_text("APPLE JUICE", 0, 18, 14, (232, 196, 92), _WHITE), _text("750 ML", 0, 44, 18, _WHITE, (150, 220, 160))),
        ),
        *((42, 92, 62), (116, 76, 50), (150, 190)),
        turn=8,
        shift=12,
    ),
    "warning": Label(
        (
            *(Print("logo", "***", 0, -44, 32, (30, 28, 26), _RED), _text("CAUTION", 0, 4, 30, (30, 28, 26), _RED)),
            *(_text("HOT SURFACE", 0, 34, 17, (30, 28, 26), _RED), _text("W 012", 62, 62, 12)),
        ),
        *((238, 192, 40), (168, 170, 172), (190, 168)),
        turn=4,
        shift=8,
        gloss=12,
    ),
}
CATEGORIES = {name: Scenes(partial(_draw, label), DEFECTS) for name, label in LABELS.items()}
