"""How results look in the Prefect UI."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

from PIL import Image

WIDEST = 900  # pixels: an artifact is stored in the server's database


def key(pipeline: str, name: str) -> str:
    """Artifacts of one key are versions of one another."""
    return f"{pipeline}-{name}"


def data_uri(picture: Path) -> str:
    """The picture itself as a URL, reduced and as JPEG, so that the UI shows it wherever the server runs."""
    with Image.open(picture) as image:
        image.thumbnail((WIDEST, 10 * WIDEST))
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def rows_of(table: Path) -> list[dict[str, str]]:
    """A CSV as the UI's tables take it."""
    with table.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
