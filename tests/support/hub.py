"""A real web server that serves files as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret


@dataclass
class Hub:
    """A server of files by their path, such as timm/a/model.safetensors. Other paths are served as they are."""

    files: dict[str, bytes] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    """Hashes to state in place of the files' own."""
    gated: bool = False
    breaks_at: int | None = None
    """Byte after which the first answer ends."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request."""
    url: str = ""


@contextmanager
def hub() -> Iterator[Hub]:
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            asked = self.headers.get("Range", "")
            served.asked.append((self.command, self.path, asked))
            name = re.sub(r"/resolve/[^/]+/", "/", self.path).lstrip("/")
            if served.gated or name not in served.files:
                self.send_response(403 if served.gated else 404)
                self.send_header("X-Error-Code", "GatedRepo" if served.gated else "EntryNotFound")
                self.send_header("X-Error-Message", "Access to this model is restricted." if served.gated else "No such file.")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            whole = served.files[name]
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{served.stated.get(name, hashlib.sha256(whole).hexdigest())}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(whole) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.end_headers()
            if with_body:
                end, served.breaks_at = served.breaks_at, None
                self.wfile.write(whole[start:end])
                self.close_connection = True

        def log_message(self, *_arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
