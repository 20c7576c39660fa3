"""Run a stage's work as Prefect tasks with retries, and show its progress and results in the Prefect UI."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import httpx
from PIL import Image
from prefect import Task, task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from changepair.flows.running.api import wait_for_server
from changepair.flows.running.places import DATA
from changepair.flows.settings.pipelines import Execution
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.stopping import Stopped
from changepair.tasks.common.texts import csv_rows

if TYPE_CHECKING:
    from changepair.tasks.training.tracking import Tracking

P = ParamSpec("P")
R = TypeVar("R")
EVERY = 5.0  # seconds between two reports of progress
HOUR = 3600.0  # seconds
WIDEST = 900  # pixels: an artifact is stored in the server's database


def worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether Prefect retries a task. A disk or a network may recover, but bad input or a stop will not."""
    return not isinstance(state.data, (BadInput, Stopped))


def step(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Decorate a function as a task, a step of a stage with retries. DVC is the cache, so Prefect stores no result."""
    defaults = {"retries": 2, "retry_delay_seconds": 5, "retry_condition_fn": worth_retrying, "persist_result": False}
    return cast(Any, task(**{**defaults, **options}))


def progress(description: str) -> Callable[[float], None]:
    """Return a function that shows the completed share of a task, 0..1, in the UI."""
    wait_for_server()
    artifact: Any = create_progress_artifact(0.0, description=description)
    last = time.monotonic()

    def tell(share: float) -> None:
        nonlocal last
        if share >= 1 - 1e-9 or time.monotonic() - last >= EVERY:
            last = time.monotonic()
            with suppress(httpx.TransportError):  # work continues without the server, and the next update may succeed
                update_progress_artifact(artifact, round(100 * share, 1))

    return tell


def show_rows(pipeline: str, name: str, rows: Sequence[dict[str, str]], about: str) -> None:
    wait_for_server()
    create_table_artifact(list(rows), key=f"{pipeline}-{name}", description=about)


def show_table(pipeline: str, name: str, table: Path, about: str) -> None:
    """Show a CSV file as a table in the UI."""
    show_rows(pipeline, name, [dict(row) for _line, row in csv_rows(table)], about)


def show_picture(pipeline: str, name: str, picture: Path, about: str) -> None:
    """Show a reduced picture in the UI, as a JPEG inside its URL, because the UI cannot read files."""
    wait_for_server()
    create_image_artifact(picture_url(picture), key=f"{pipeline}-{name}", description=about)


def picture_url(picture: Path) -> str:
    """Return a `data:` URL of a reduced picture."""
    image = Image.fromarray(read_picture(picture))
    image.thumbnail((WIDEST, 10 * WIDEST))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def show_page(pipeline: str, name: str, markdown: str, about: str | None = None) -> None:
    wait_for_server()
    create_markdown_artifact(markdown, key=f"{pipeline}-{name}", description=about)


def tracking_of(execution: Execution, pipeline: str, name: str) -> Tracking:
    """Return the experiment trackers for a detector's training, or for the metrics."""
    from changepair.tasks.training.tracking import Tracking  # imports torch

    return Tracking(execution.trackers, DATA / "runs" / pipeline / "tensorboard", name)
