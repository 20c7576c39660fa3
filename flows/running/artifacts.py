"""Shows results in the Prefect UI: tables, pictures and pages, each a version of the one before of the same name."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from changepair.flows.running.api import wait_for_server
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.texts import csv_rows

WIDEST = 900  # pixels: an artifact is stored in the server's database


def show_rows(pipeline: str, name: str, rows: Sequence[dict[str, str]], about: str) -> None:
    wait_for_server()
    create_table_artifact(list(rows), key=f"{pipeline}-{name}", description=about)


def show_table(pipeline: str, name: str, table: Path, about: str) -> None:
    """Shows a CSV."""
    show_rows(pipeline, name, [dict(row) for _line, row in csv_rows(table)], about)


def show_picture(pipeline: str, name: str, picture: Path, about: str) -> None:
    """Shows a picture, reduced, as a JPEG within its URL, so that the UI shows it wherever the server runs."""
    wait_for_server()
    create_image_artifact(picture_url(picture), key=f"{pipeline}-{name}", description=about)


def picture_url(picture: Path) -> str:
    """Gives a picture, reduced, as a URL that holds all of it."""
    image = Image.fromarray(read_picture(picture))
    image.thumbnail((WIDEST, 10 * WIDEST))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def show_page(pipeline: str, name: str, markdown: str, about: str | None = None) -> None:
    wait_for_server()
    create_markdown_artifact(markdown, key=f"{pipeline}-{name}", description=about)
