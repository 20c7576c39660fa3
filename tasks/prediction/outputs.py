"""Writes what a detector says of pictures: tables, anomaly maps, overlays."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.common.files import written_beside
from tasks.common.pictures import Picture
from tasks.common.sheets import heated
from tasks.prediction.calibration import Threshold
from tasks.prediction.predictor import Prediction

MapForm = Literal["png", "npy"]
FULL = 65535
"""Of a map's PNG: what 1 is written as. 16 bits a pixel, grey."""
Verdict = Literal["normal", "anomalous"]


@dataclass(frozen=True)
class Line:
    """A picture's line in a table; the columns' names are the fields'."""

    picture: str
    score: float
    threshold: float | None
    """None where nothing was calibrated, so that there is no verdict either."""
    verdict: Verdict | None


def line_of(name: str, score: float, threshold: Threshold | None) -> Line:
    if threshold is None:
        return Line(name, score, None, None)
    return Line(name, score, threshold.value, "anomalous" if threshold.exceeded(score) else "normal")


def as_csv(line: Line) -> list[str]:
    """Gives a line's cells; a score to the last bit of its float32."""
    cells = asdict(line)
    cells["score"] = f"{np.float32(line.score)!s}"
    return ["" if cell is None else str(cell) for cell in cells.values()]


def as_json(line: Line) -> str:
    return json.dumps({**asdict(line), "score": float(str(np.float32(line.score)))}, ensure_ascii=False)


def level_of(map_: NDArray[np.float32], threshold: Threshold | None) -> NDArray[np.float32]:
    """Scales a map to be looked at, 0..1. After calibration 1 is twice what normal pictures show at their most, for every picture the same;
    before it is the picture's own maximum, so that a normal picture has its red too."""
    top = float(map_.max()) if threshold is None else 2 * threshold.top
    return np.clip(map_ / max(top, 1e-6), 0, 1)


def overlay(picture: Picture, map_: NDArray[np.float32], threshold: Threshold | None) -> Picture:
    """Lays a map HxW over its picture, as `level_of` scales it."""
    return heated(picture, level_of(map_, threshold))


def write_map(file: Path, map_: NDArray[np.float32]) -> None:
    """Writes a map HxW in [0, 1]: as grey PNG of 16 bits, or as float32 where the file ends with .npy."""
    with written_beside(file) as partial:
        if file.suffix == ".npy":
            with partial.open("wb") as stream:
                np.save(stream, map_)
        else:
            partial.write_bytes(map_png(map_))


def map_png(map_: NDArray[np.float32]) -> bytes:
    """Gives a map HxW in [0, 1] as the bytes of a grey PNG of 16 bits, where FULL is 1."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(map_ * FULL).astype(np.uint16)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write_overlay(file: Path, prediction: Prediction, threshold: Threshold | None) -> None:
    with written_beside(file) as partial:
        Image.fromarray(overlay(prediction.picture, prediction.map, threshold)).save(partial, "PNG", compress_level=1)
