"""Write a detector's results: tables, anomaly maps, overlays."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from changepair.tasks.common.files import written_beside
from changepair.tasks.common.pictures import Picture
from changepair.tasks.common.sheets import heated
from changepair.tasks.prediction.calibration import DECIMALS, Threshold, reported

if TYPE_CHECKING:
    from changepair.tasks.prediction.predictor import Prediction

FULL = 65535  # pixel value of 1 in a map's PNG, which is grey with 16 bits
Verdict = Literal["normal", "anomalous"]


@dataclass(frozen=True)
class OutputRow:
    """A picture's row in a table. The verdict compares these rounded numbers."""

    picture: str
    score: float
    threshold: float | None
    """None without calibration."""
    verdict: Verdict | None
    """None without a threshold."""


def line_of(name: str, score: float, threshold: Threshold | None) -> OutputRow:
    """Make the row of a picture from its score."""
    if threshold is None:
        return OutputRow(name, reported(score), None, None)
    return OutputRow(name, reported(score), threshold.value, "anomalous" if threshold.exceeded(score) else "normal")


def shown(number: float) -> str:
    """Format a score or a threshold with DECIMALS."""
    return f"{number:.{DECIMALS}f}"


def blended(drawn: Picture, picture: Picture, strength: float) -> Picture:
    """Blend an overlay with its picture. strength: 0 for the picture, 1 for the overlay."""
    return drawn if strength == 1.0 else (strength * drawn + (1 - strength) * picture).astype(np.uint8)


def map_png(map_: NDArray[np.float32]) -> bytes:
    """Encode a map HxW in [0, 1] as a grey 16-bit PNG. FULL stands for 1."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(map_ * FULL).astype(np.uint16)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def save(prediction: Prediction, name: Path, folder: Path, top: float, *, maps: Literal["png", "npy"] | None, overlays: bool) -> None:
    """Write a picture's map and overlay, each if wanted.

        folder/maps/<name>.png       the map as a grey 16-bit PNG, or
        folder/maps/<name>.npy       the map as float32
        folder/overlays/<name>.png   the picture with its map

    top: map value that normal pictures reach. It scales the colours.
    """
    if maps is not None:
        with written_beside(folder / "maps" / f"{name}.{maps}") as partial, partial.open("wb") as stream:
            if maps == "npy":
                np.save(stream, prediction.map)
            else:
                stream.write(map_png(prediction.map))
    if overlays:
        write_overlay(folder / "overlays" / f"{name}.png", prediction, top)


@contextmanager
def score_table(file: Path) -> Iterator[Callable[[OutputRow], None]]:
    """Yield a function that adds a row to a CSV file. The complete file appears when the block ends without an error."""
    with written_beside(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        yield csv_lines(stream)


def csv_lines(stream: TextIO) -> Callable[[OutputRow], None]:
    """Write the header of a CSV. Return a function that writes a row."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(OutputRow)])

    def write(line: OutputRow) -> None:
        writer.writerow([line.picture, shown(line.score), "" if line.threshold is None else shown(line.threshold), line.verdict or ""])

    return write


def write_overlay(file: Path, prediction: Prediction, top: float) -> None:
    """Write a picture with its anomaly map. top: map value that normal pictures reach."""
    write_picture(file, heated(prediction.picture, prediction.map, top))


def write_picture(file: Path, picture: Picture) -> None:
    """Write a PNG. picture: HxWx3 uint8."""
    with written_beside(file) as partial:
        Image.fromarray(picture).save(partial, "PNG", compress_level=1)
