"""Serve the pages of `changepair demo` and `changepair review` with Gradio. They load nothing from the network."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from changepair.flows.arguments import COUNT, check_options, token_for
from changepair.flows.prediction.budget import default_budget
from changepair.flows.prediction.options import tell
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.stopping import EXIT_CODE
from changepair.tasks.prediction.memory import Needs, needs_of

MOST_BYTES = "32mb"
UPLOAD = "/gradio_api/upload"  # its request bodies are written to files, each of at most MOST_BYTES
MOST_BODY = 2**20  # largest body of other requests in bytes; it holds the names of at most 500 files
MOST_FIELD = 2**16  # largest field of a form in bytes, except files
SHOWN = 1024  # longer side of a shown picture in pixels
HELD = "the detector and the pictures and prompts of all visitors; larger pictures are refused"
KEPT = 3600  # seconds that uploaded and shown files are kept
CSS = """.verdict {font-size: 1.3em} footer {visibility: hidden}
.filling img {width: 100%; height: 100%; object-fit: contain}
@media (max-width: 640px) {.filling {height: 340px !important}}
.gallery-container .grid-wrap {padding-top: 2.4em}
.grid-container .thumbnail-lg {height: auto; aspect-ratio: auto; overflow: hidden}
.grid-container .thumbnail-lg > img {height: auto; aspect-ratio: 1}
.grid-container .caption-label {position: static; max-width: 100%; overflow: visible; white-space: normal; overflow-wrap: anywhere;
  border: 0; font-size: 0.9em; text-align: center; opacity: 1 !important}
.gallery-container .caption {white-space: normal; overflow-wrap: anywhere}
#found .grid-wrap {min-height: 8em; max-height: none; overflow: visible}
.histogram {margin: 0; max-width: 30rem} .histogram svg {display: block; width: 100%; margin-top: 0.5em}"""


def add_address(
    parser: argparse.ArgumentParser, port: int, held: str = HELD, *, about_port: str = "port to listen on (default: %(default)s)"
) -> None:
    """Add the options of a page or the service: address, port and memory. held: use of the memory."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=port, help=about_port)
    limit = "half of the memory of the machine or container, at most 4294"
    parser.add_argument("--memory", type=int, metavar="MB", help=f"memory in MB for {held} (default: {limit})")


def memory_of(arguments: argparse.Namespace) -> int:
    """Return the memory of a page in bytes. Raises BadInput if --memory is out of bounds."""
    if arguments.memory is None:
        return default_budget()
    check_options(arguments, {"memory": COUNT})
    return int(arguments.memory) * 1_000_000


def gradio_in(work: Path) -> Any:
    """Import Gradio. It then connects to no host, keeps uploads in `work`, and holds nothing large in memory."""
    os.environ["GRADIO_TEMP_DIR"] = str(work / "uploads")
    import gradio

    _bound(gradio)
    return gradio


def _bound(gradio: Any) -> None:
    """Prevent requests from filling the memory of Gradio in three ways.

    The first is a URL instead of a file, whose content would be read at once. The second is large fields of a form. The third is the copy
    of all inputs that each session keeps for links to a state of the page.
    """
    from gradio import processing_utils
    from gradio.route_utils import GradioMultiPartParser
    from gradio.state_holder import SessionState
    from starlette.formparsers import MultiPartException

    async def fetch(url: str) -> Any:
        raise gradio.Error("the page does not read URLs; upload the file", print_exception=False)

    parser: Any = GradioMultiPartParser
    session: Any = SessionState
    read = parser.on_part_data

    def read_part(self: Any, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > MOST_FIELD:
            raise MultiPartException(f"a field exceeds the maximum allowed size of {MOST_FIELD} bytes")
        read(self, data, start, end)

    processing_utils.async_ssrf_protected_get = fetch
    parser.on_part_data = read_part
    session._update_value_in_config = lambda *_arguments: None


def serve_page(gradio: Any, page: Any, listening: socket.socket, *, head: str = "") -> None:
    """Serve a page until Ctrl-C or SIGTERM. head: HTML for its head."""
    from fastapi import FastAPI

    from changepair.flows.prediction.front import LOCAL, Front, Rules, serve_app

    system = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )  # installed fonts, so none is fetched
    page.queue(default_concurrency_limit=1, max_size=32, api_open=False)  # all requests go through the queue
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
    tell(f"serving the page at http://{host}:{port}")
    signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(EXIT_CODE))  # as for Ctrl-C, so that uploads are deleted
    serve_app(Front(app, Rules(token=token_for(listening), hosts=LOCAL, body=MOST_BODY, files=(UPLOAD,))), listening, ending_seconds=1)


@contextmanager
def show_errors(gradio: Any) -> Iterator[None]:
    """Show a BadInput to the visitor in one line."""
    try:
        yield
    except BadInput as error:
        raise gradio.Error(str(error).replace(os.environ["GRADIO_TEMP_DIR"], "…"), duration=None, print_exception=False) from error


def small(picture: Any) -> Any:
    """Return a picture HxWx3 as an image with at most SHOWN pixels per side."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((SHOWN, SHOWN))
    return image


class Memory:
    """Memory of a page in bytes. A computation holds `turn`, and claims its memory before it starts.

    A session that keeps something has a `size` in bytes and a method `drop()`.
    """

    def __init__(self, total: int, fixed: int = 0) -> None:
        """Create the memory. Raises BadInput if `fixed` leaves nothing.

        total: bytes for one computation, for all sessions, and for `fixed`. fixed: bytes that the page always holds.
        """
        if fixed >= total:
            raise BadInput(f"the detector and one batch need {fixed / 1e9:.2g} of {total / 1e9:.2g} GB; increase --memory")
        self.turn = threading.Lock()
        self._total = total - fixed
        self._kept: WeakKeyDictionary[Any, None] = WeakKeyDictionary()  # least recently used first

    def room(self, own: Any = None) -> int:
        """Return how many bytes a computation may take. own: its session, which stays."""
        return self._total - (0 if own is None else own.size)

    def claim(self, size: int, what: str, own: Any = None) -> None:
        """Make room for a computation: drop the least recently used sessions. Raises BadInput if it does not fit.

        what: name of the computation, for the message. own: its session, which stays.
        """
        if size > self.room(own):
            raise BadInput(
                f"{what}: needs {size / 1e9:.2g} GB of memory, more than the {self.room(own) / 1e9:.2g} GB that the page has for it; "
                "use fewer or smaller pictures, or start the page with more --memory"
            )
        for one in list(self._kept):
            if sum(kept.size for kept in self._kept) + size <= self._total:
                break
            if one is not own:
                del self._kept[one]
                one.drop()

    def keep(self, own: Any) -> None:
        """Count the memory of a session, and mark it as most recently used."""
        self._kept.pop(own, None)
        self._kept[own] = None


def needs_of_file(file: Path, room: int) -> Needs:
    """Estimate the memory of a picture, as `needs_of` does. A file larger than `room` is not read."""
    try:
        size = file.stat().st_size
        return needs_of(file.read_bytes()) if size <= room else Needs((0, 0), size, 0)
    except OSError:  # the decoder reports the reason
        return Needs((0, 0), 0, 0)
