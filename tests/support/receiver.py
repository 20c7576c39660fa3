"""A real web server that takes JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """A server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.url = ""


@contextmanager
def receiver(answer: Callable[[Any], object] = lambda content: {}) -> Iterator[Receiver]:
    """answer: what is given back, as JSON, for what came."""
    receiver_ = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver_.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer(receiver_.received[-1])).encode())

        def log_message(self, *_arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    receiver_.url = f"http://127.0.0.1:{server.server_port}/hooks/T0PSECRET"
    try:
        yield receiver_
    finally:
        server.shutdown()
