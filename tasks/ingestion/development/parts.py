"""Draw six parts on a ground, some registered and some turned and placed freely.

Pieces are missing, moved, wrong or recoloured, and parts have scratches and chips. Dust and faint stains lie on the ground of normal
pictures. The set decides about background, the length of features, and matching by position. It says nothing about changes of the whole
picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from changepair.tasks.ingestion.development.grounds import belt, board, dirt, table, wood
from changepair.tasks.ingestion.development.rendering import (
    FINE,
    GOOD,
    Colour,
    Ink,
    Plane,
    Rng,
    Scenes,
    grain,
    mixed,
    photograph,
    put,
    write_scenes,
)
from changepair.tasks.ingestion.texture_defects import SIZE

DEFECTS = ("missing", "moved", "wrong", "recoloured", "scratch", "chip")
Shape = NDArray[np.float64]  # (corners, 2): right and down, in pixels


@dataclass(frozen=True)
class Piece:
    """A flat shape with marks printed on it or cut into it, placed on its part."""

    shape: Shape
    colour: Ink
    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0  # radians, clockwise
    marks: tuple[tuple[Shape, Ink], ...] = ()
    holes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Part:
    body: tuple[Piece, ...]
    """The part, from the lowest layer to the highest."""
    pieces: Callable[[Rng], tuple[Piece, ...]]
    """Mounted pieces, the layer that defects change."""
    ground: Callable[[Rng], Colour]
    turn: float = 0.02  # radians, the largest
    shift: float = 3.0  # pixels, the largest
    other: Ink = (150, 60, 50)
    """Colour of a recoloured piece."""
    heights: tuple[float, float] = (5.0, 3.0)  # of the shadows of part and pieces, in pixels
    reliefs: tuple[float, float] = (0.9, 0.9)
    metal: float = 5.0  # contrast of brushed grain in grey levels


def write(folder: Path) -> None:
    """Write each part to folder/<category> in MVTec AD's layout, masks included."""
    write_scenes(folder, CATEGORIES)


def _draw(part: Part, rng: Rng, kind: str, other: Rng) -> Colour:
    light, turn, shift = rng.uniform(-2.5, -2.1), rng.uniform(-1, 1) * part.turn, rng.uniform(-1, 1, 2) * part.shift
    picture = dirt(part.ground(rng), rng)
    body, pieces = part.body, part.pieces(rng)
    brushed = (part.metal * grain(rng, 0.8, 12) + 3 * grain(rng, 30))[..., None]
    if kind == "chip":
        body = (_chipped(body[0], other), *body[1:])
    elif kind not in (GOOD, "scratch"):
        pieces = _altered(part, pieces, kind, other)
    for layer in body:
        cover, coat = _layer((layer,), turn, shift)
        picture = put(picture, cover, coat + brushed, light=light, bevel=1.6, relief=part.reliefs[0], shadow=part.heights[0])
    if kind == "scratch":
        picture = picture + _scratch(other, turn, shift, body[0]) * other.choice([-45, 55])
    cover, coat = _layer(pieces, turn, shift)
    picture = put(picture, cover, coat + brushed, light=light, bevel=1.4, relief=part.reliefs[1], shadow=part.heights[1])
    return photograph(picture, rng)


def _layer(pieces: tuple[Piece, ...], turn: float, shift: NDArray[np.float64]) -> tuple[Plane, Colour]:
    """Return the opacity of pieces, 0 to 1, and their colours."""
    cover, coat = Image.new("L", (SIZE * FINE,) * 2), Image.new("RGB", (SIZE * FINE,) * 2)
    pens = ImageDraw.Draw(cover), ImageDraw.Draw(coat)
    for piece in pieces:
        at = partial(_placed, piece=piece, turn=turn, shift=shift)
        pens[0].polygon(at(piece.shape), fill=255)
        pens[1].polygon(at(piece.shape), fill=tuple(map(int, piece.colour)))
        for mark, colour in piece.marks:
            pens[1].polygon(at(mark), fill=tuple(map(int, colour)))
        for hole in piece.holes:
            pens[0].polygon(at(hole), fill=0)
            pens[1].polygon(at(hole), fill=(0, 0, 0))
    opacity = np.asarray(cover.reduce(FINE), dtype=np.float32) / 255
    painted = np.asarray(coat.reduce(FINE), dtype=np.float32)  # mixed with black at edges
    return opacity, np.minimum(painted / np.maximum(opacity, 0.02)[..., None], 255)


def _placed(shape: Shape, piece: Piece, turn: float, shift: NDArray[np.float64]) -> list[tuple[float, float]]:
    on_part = _turned(shape, piece.turn) + np.array([piece.x, piece.y])
    return [(float(x), float(y)) for x, y in (_turned(on_part, turn) + shift + SIZE / 2) * FINE]


def _turned(shape: Shape, turn: float) -> Shape:
    cos, sin = np.cos(turn), np.sin(turn)
    return shape @ np.array([[cos, sin], [-sin, cos]])


def _altered(part: Part, pieces: tuple[Piece, ...], kind: str, other: Rng) -> tuple[Piece, ...]:
    """Remove, move, exchange or recolour one piece."""
    index = int(other.integers(len(pieces)))
    piece = pieces[index]
    away = other.uniform(0, 2 * np.pi)
    by = other.uniform(5, 8)
    grown = piece.shape * other.choice([0.68, 1.32])
    changed = {
        "missing": (),
        "moved": (replace(piece, x=piece.x + by * np.cos(away), y=piece.y + by * np.sin(away), turn=piece.turn + other.uniform(0.2, 0.6)),),
        "wrong": (replace(piece, shape=grown, marks=piece.marks if len(grown) > 8 else ()),),
        "recoloured": (replace(piece, colour=mixed(piece.colour, part.other, 0.45)),),
    }[kind]
    return (*pieces[:index], *changed, *pieces[index + 1 :])


def _chipped(piece: Piece, other: Rng) -> Piece:
    """Break a piece out of the edge."""
    start = int(other.integers(len(piece.shape)))
    along = other.uniform(0.2, 0.8)
    at = piece.shape[start] * along + piece.shape[(start + 1) % len(piece.shape)] * (1 - along)
    angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    rim = other.uniform(5, 10) * other.uniform(0.7, 1.2, 9)
    return replace(piece, holes=(*piece.holes, np.stack([np.cos(angles), np.sin(angles)], 1) * rim[:, None] + at))


def _scratch(other: Rng, turn: float, shift: NDArray[np.float64], piece: Piece) -> Colour:
    """Draw the opacity of a thin bent line on a piece."""
    reach = np.abs(piece.shape).max(axis=0) * 0.6
    start, bend = other.uniform(-reach, reach), other.uniform(0, 2 * np.pi) + np.cumsum(other.normal(0, 0.12, 10))
    points = start + np.cumsum(np.stack([np.cos(bend), np.sin(bend)], 1) * other.uniform(4, 8), axis=0)
    line = Image.new("L", (SIZE * FINE,) * 2)
    ImageDraw.Draw(line).line(_placed(points, piece, turn, shift), fill=255, width=int(other.integers(2, 5)))
    cover, _ = _layer((piece,), turn, shift)
    return (cover * np.asarray(line.reduce(FINE), np.float32) / 255)[..., None]


def _box(width: float, height: float, *, corner: float = 0.0, x: float = 0.0, y: float = 0.0) -> Shape:
    """Return a rectangle with rounded corners, centred at a place."""
    angles = np.linspace(0, 2 * np.pi, 24 if corner else 4, endpoint=False) + (0 if corner else np.pi / 4)
    round_ = np.stack([np.cos(angles), np.sin(angles)], 1)
    return round_ * corner + np.sign(np.round(round_, 6) + 1e-9) * (width / 2 - corner, height / 2 - corner) + (x, y)


def _disc(radius: float, *, x: float = 0.0, y: float = 0.0, teeth: int = 0, depth: float = 0.0) -> Shape:
    """Return a disc, or a wheel with teeth of a depth in pixels."""
    angles = np.linspace(0, 2 * np.pi, max(36, 10 * teeth), endpoint=False)
    rim = radius - depth / 2 + depth / 2 * np.clip(2.2 * np.sin(teeth * angles), -1, 1) if teeth else np.full(36, radius)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * rim[:, None] + (x, y)


def _screws(rng: Rng) -> tuple[Piece, ...]:
    slots = ((_box(14, 3), (70, 66, 60)), (_box(3, 14), (70, 66, 60)))
    places = ((-66, -62), (-66, 0), (-66, 62), (0, 62), (64, 62))
    return tuple(Piece(_disc(12), (190, 182, 158), x, y, rng.uniform(0, np.pi), slots) for x, y in places)


def _components(_rng: Rng) -> tuple[Piece, ...]:
    chip = ((_box(30, 3, y=-8), (120, 120, 120)), (_disc(2.5, x=-18, y=10), (120, 120, 120)))
    bands = tuple((_box(2.5, 10, x=x), colour) for x, colour in ((-6, (120, 50, 30)), (-1, (40, 40, 40)), (4, (190, 40, 40))))
    return (
        Piece(_box(56, 36), (38, 38, 42), -18, -14, marks=chip),
        *(Piece(_box(24, 10, corner=4), (198, 170, 122), x, 52, marks=bands) for x in (-62, -30, 2)),
        *(Piece(_disc(13), (176, 178, 184), x, 48, marks=((_box(10, 22, x=-8), (60, 60, 70)),)) for x in (38, 70)),
        *(Piece(_box(13, 8), (150, 116, 84), x, y) for x, y in ((40, -30), (40, -14), (40, 2), (66, -30), (66, -14))),
        Piece(_disc(6), (204, 52, 44), 72, 12),
        Piece(_box(84, 16), (226, 222, 210), 0, -62, marks=tuple((_disc(3.5, x=x), (80, 76, 60)) for x in range(-35, 36, 10))),
    )


def _pills(_rng: Rng) -> tuple[Piece, ...]:
    halves = ((_box(19, 36, x=-9.5), (216, 120, 92)),)
    return tuple(
        Piece(_box(34, 18, corner=9), (240, 232, 216), x, y, np.pi / 2, ((halves[0][0][:, ::-1] * 0.42, halves[0][1]),))
        for x in (-66, -33, 0, 33, 66)
        for y in (-30, 30)
    )


def _emblem(_rng: Rng) -> tuple[Piece, ...]:
    angles = np.arange(5) * 2 * np.pi / 5
    return (
        Piece(_disc(17, teeth=5, depth=12), (238, 226, 180)),
        *(Piece(_box(20, 8, corner=3), (238, 226, 180), 36 * np.cos(at), 36 * np.sin(at), at + np.pi / 2) for at in angles),
    )


def _pins(_rng: Rng) -> tuple[Piece, ...]:
    return tuple(
        Piece(_box(9, 9), (206, 170, 86), x, y, marks=((_box(4, 4), (150, 116, 50)),)) for x in range(-50, 51, 20) for y in (-11, 11)
    )


def _bolts(rng: Rng) -> tuple[Piece, ...]:
    places = np.arange(6) * np.pi / 3
    return tuple(Piece(_disc(9, teeth=6, depth=2), (92, 94, 102), 44 * np.cos(at), 44 * np.sin(at), rng.uniform(0, 1)) for at in places)


_BRACKET = np.array([(-86, -86), (-46, -86), (-46, 40), (86, 40), (86, 84), (-86, 84)], dtype=np.float64)
_TRACES = tuple(
    (_box(wide, high, x=x, y=y), (64, 140, 84))
    for wide, high, x, y in ((150, 3, 0, 34), (3, 60, 22, -10), (60, 3, 50, -46), (3, 70, -78, 0), (40, 3, -60, 20), (3, 40, 54, 10))
)
_POCKETS = tuple((_box(26, 44, corner=12, x=x, y=y), (172, 176, 184)) for x in (-66, -33, 0, 33, 66) for y in (-30, 30))

PARTS: dict[str, Part] = {
    "bracket": Part(
        (Piece(_BRACKET, (116, 128, 142), holes=(_box(12, 44, corner=6, x=-66, y=-31 + 62), _box(26, 10, corner=5, x=32, y=62))),),
        _screws,
        wood,
        other=(60, 56, 52),
    ),
    "circuit": Part(
        (
            Piece(
                _box(188, 156, corner=4), (30, 96, 58), marks=_TRACES, holes=tuple(_disc(5, x=x, y=y) for x in (-84, 84) for y in (-68, 68))
            ),
        ),
        _components,
        board,
        other=(60, 90, 180),
        metal=1.5,
    ),
    "blister": Part(
        (Piece(_box(190, 136, corner=12), (196, 200, 206), marks=_POCKETS),),
        _pills,
        table,
        turn=0.06,
        shift=6,
        other=(120, 150, 90),
        reliefs=(0.9, 1.3),
        metal=3,
    ),
    "cap": Part(
        (Piece(_disc(78, teeth=21, depth=9), (150, 34, 40)), Piece(_disc(62), (166, 40, 46))),
        _emblem,
        board,
        turn=np.pi,
        shift=20,
        other=(90, 140, 190),
        reliefs=(1.4, 0.5),
        metal=2,
    ),
    "connector": Part(
        (Piece(_box(156, 74, corner=6), (44, 46, 52)), Piece(_box(132, 52), (26, 27, 30))),
        _pins,
        table,
        turn=0.5,
        shift=22,
        other=(160, 164, 170),
        metal=1.5,
    ),
    "gear": Part(
        (
            Piece(_disc(88, teeth=24, depth=16), (148, 150, 156), holes=(_disc(16), _box(9, 12, y=-18))),
            Piece(_disc(28), (164, 166, 172), holes=(_disc(16), _box(9, 12, y=-18))),
        ),
        _bolts,
        belt,
        turn=np.pi,
        shift=16,
        other=(190, 150, 70),
        heights=(7, 4),
    ),
}
CATEGORIES = {name: Scenes(partial(_draw, part), DEFECTS) for name, part in PARTS.items()}
