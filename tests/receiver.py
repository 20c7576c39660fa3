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
    """A server that keeps the notices it gets, and answers with these codes in turn, then 200."""

    def __init__(self, *codes: int, pause: float = 0.0) -> None:
        self.codes, self.pause, self.notices = list(codes), pause, []  # type: ignore[var-annotated]
        self.url = ""


@contextmanager
def receiver(*codes: int, pause: float = 0.0, answer: Callable[[Any], object] = lambda content: {}) -> Iterator[Receiver]:
    """answer: what is given back, as JSON, for what came."""
    receiver_ = Receiver(*codes, pause=pause)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver_.notices.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            time.sleep(receiver_.pause)
            self.send_response(receiver_.codes.pop(0) if receiver_.codes else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer(receiver_.notices[-1])).encode())

        def log_message(self, *_arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    receiver_.url = f"http://127.0.0.1:{server.server_port}/hooks/T0PSECRET"
    try:
        yield receiver_
    finally:
        server.shutdown()
