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

FULL = 65535  # of a map's PNG: what 1 is written as. 16 bits a pixel, grey.
Verdict = Literal["normal", "anomalous"]


@dataclass(frozen=True)
class OutputRow:
    """A picture's row in a table, with the fields as columns. The verdict compares these rounded numbers."""

    picture: str
    score: float
    threshold: float | None  # none where nothing was calibrated, so that there is no verdict either
    verdict: Verdict | None


def line_of(name: str, score: float, threshold: Threshold | None) -> OutputRow:
    """Make the line of a picture from its score."""
    if threshold is None:
        return OutputRow(name, reported(score), None, None)
    return OutputRow(name, reported(score), threshold.value, "anomalous" if threshold.exceeded(score) else "normal")


def shown(number: float) -> str:
    """Format a score or a threshold with the compared decimals."""
    return f"{number:.{DECIMALS}f}"


def blended(drawn: Picture, picture: Picture, strength: float) -> Picture:
    """Blend an overlay with its picture. strength: from 0 (only the picture) to 1 (only the overlay)."""
    return drawn if strength == 1.0 else (strength * drawn + (1 - strength) * picture).astype(np.uint8)


def map_png(map_: NDArray[np.float32]) -> bytes:
    """Encode a map HxW in [0, 1] as a grey PNG of 16 bits, where FULL is 1."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(map_ * FULL).astype(np.uint16)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def save(prediction: Prediction, name: Path, folder: Path, top: float, *, maps: Literal["png", "npy"] | None, overlays: bool) -> None:
    """Write folder/maps/<name>.<maps>, a grey PNG of 16 bits or float32, and folder/overlays/<name>.png, each if wanted."""
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
    """Yield a function that adds a line to a CSV file. The file appears, complete, when the block ends without an error."""
    with written_beside(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        yield csv_lines(stream)


def csv_lines(stream: TextIO) -> Callable[[OutputRow], None]:
    """Write the header of a CSV, and return a function that writes a line."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(OutputRow)])

    def write(line: OutputRow) -> None:
        writer.writerow([line.picture, shown(line.score), "" if line.threshold is None else shown(line.threshold), line.verdict or ""])

    return write


def write_overlay(file: Path, prediction: Prediction, top: float) -> None:
    write_picture(file, heated(prediction.picture, prediction.map, top))


def write_picture(file: Path, picture: Picture) -> None:
    """Write a PNG. picture: HxWx3 uint8."""
    with written_beside(file) as partial:
        Image.fromarray(picture).save(partial, "PNG", compress_level=1)
