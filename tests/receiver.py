"""A real web server that takes JSON: notices, or questions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """What came, and how it is answered: with these codes in turn, then 200."""

    def __init__(self, *codes: int, pause: float = 0.0) -> None:
        self.codes, self.pause, self.came = list(codes), pause, []  # type: ignore[var-annotated]
        self.url = ""


@contextmanager
def receiver(*codes: int, pause: float = 0.0, answer: Callable[[Any], object] = lambda content: {}) -> Iterator[Receiver]:
    """answer: what is given back, as JSON, for what came."""
    found = Receiver(*codes, pause=pause)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            time.sleep(found.pause)
            self.send_response(found.codes.pop(0) if found.codes else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer(found.came[-1])).encode())

        def log_message(self, *_arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/hooks/T0PSECRET"
    try:
        yield found
    finally:
        server.shutdown()
