"""Serve the pages of `changepair demo` and `changepair review`, which Gradio draws and which load nothing from the network."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.arguments import token_for
from flows.prediction.options import tell
from tasks.common.errors import BadInput
from tasks.common.stopping import EXIT_CODE

MOST_BYTES = "32mb"
SHOWN = 1024
"""Pixels of the longer side of what is shown."""
KEPT = 3600
"""Seconds that what was uploaded, or shown, is kept."""
CSS = """.verdict {font-size: 1.3em} footer {visibility: hidden}
.filling img {width: 100%; height: 100%; object-fit: contain}"""


def add_address(parser: argparse.ArgumentParser, port: int) -> None:
    """Adds the options that say where a page listens."""
    parser.add_argument("--host", default="127.0.0.1", help="which address to listen on (%(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=port, help="%(default)s")


def gradio_in(work: Path) -> Any:
    """Imports Gradio so that it asks nobody for anything, and keeps what is uploaded in `work`. Raises BadInput if it is not there."""
    os.environ["GRADIO_TEMP_DIR"] = str(work / "uploads")
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise BadInput("the page needs Gradio, which is not installed; install changepair[serve]") from error
    return gradio


def serve_page(gradio: Any, page: Any, listening: socket.socket, *, head: str = "") -> None:
    """Serve a page until Ctrl-C or SIGTERM. head: of the page, in HTML."""
    from fastapi import FastAPI

    from flows.prediction.front import LOCAL, Front, Rules, serve_app

    system = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none is fetched
    page.queue(default_concurrency_limit=1, max_size=32)
    page.state_session_capacity = 100
    host, port = listening.getsockname()[:2]
    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        "/",
        server_name=host,
        server_port=port,
        show_error=True,
        max_file_size=MOST_BYTES,
        theme=system,
        css=CSS,
        head=head,
        footer_links=[],
        ssr_mode=False,
        run_history=False,
    )
    tell(f"the page is at http://{host}:{port}")
    signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(EXIT_CODE))  # as Ctrl-C, so that what was uploaded is deleted
    serve_app(Front(app, Rules(token=token_for(listening), hosts=LOCAL)), listening, ending_seconds=1)


@contextmanager
def told(gradio: Any) -> Iterator[None]:
    """Shows what is the visitor's to mend, in one line."""
    try:
        yield
    except BadInput as error:
        raise gradio.Error(str(error).replace(os.environ["GRADIO_TEMP_DIR"], "…"), duration=None, print_exception=False) from error


def small(picture: Any) -> Any:
    """Gives a picture HxWx3 as an image that a page can show."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((SHOWN, SHOWN))
    return image
