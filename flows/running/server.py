"""Start the Prefect server on loopback, with a login, without telemetry, and closed to web pages of other origins."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from changepair.flows.arguments import listening
from changepair.flows.running.login import is_loopback, keep_login, login_file
from changepair.tasks.common.errors import BadInput

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_UI_API_URL": "/api",  # a relative URL works on any host and port; the default is port 4200 of the viewer's machine
}
PATIENCE = 5.0  # seconds that another process may keep the database locked
AUTHENTICATION = "PREFECT_SERVER_API_AUTH_STRING"
MOST_WAITING = 16  # open websockets that have not sent their first message
SECONDS = 10.0  # time limit for the first message
LIMITS: dict[str, Any] = {"ws_max_size": 2_000_000, "ws_max_queue": 2}
"""Limits for uvicorn: bytes per message, and messages in the queue. An event has at most 1.5 MB."""


def start(host: str, port: int) -> None:
    """Replace this process with `prefect server start`.

    Raises BadInput if the port is taken, the database cannot be used, or other machines could reach a server without a password.

    Every request needs a login. Without it, any web page that the user opens could create a run: CORS permits a POST without a content
    type, and DNS rebinding bypasses CORS. A page of another origin does not know the login.
    """
    if not is_loopback(host) and not os.environ.get(AUTHENTICATION):
        reached = "other machines could reach the server without a password"
        raise BadInput(f"--host {host}: {reached}; set {AUTHENTICATION}=<name>:<password> first")
    listening(host, port).close()
    _refuse_unusable_database()
    login, file = _login()
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}"
    lines = [
        f"Prefect UI: {address}",
        f"login: the {f'line in {file} (only you can read it)' if file else f'value of {AUTHENTICATION}'}",
        f"for runs: export PREFECT_API_URL={address}/api",
        *([f'for the prefect command: export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(file))})"'] if file else []),
    ]
    Console().print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
    environment = {**SETTINGS, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address, **os.environ, AUTHENTICATION: login}
    environment.pop("PREFECT_API_URL", None)  # it would name this server itself
    command = [sys.executable, "-m", "changepair.flows.running.server", "server", "start", "--host", host, "--port", str(port)]
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until `main`; Ctrl-C while Python starts would print a traceback
    os.execve(sys.executable, command, environment)


def _login() -> tuple[str, Path | None]:
    """Return the login that clients need, and the file that stores it if it was generated."""
    if given := os.environ.get(AUTHENTICATION):
        return given, None
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING  # takes a second; a Prefect profile may set it

    if configured := PREFECT_SERVER_API_AUTH_STRING.value():
        return configured, None
    return keep_login(), login_file()


def main() -> None:
    """Run Prefect's own command with this command's arguments. Until Prefect handles Ctrl-C, it ends the process in the default way."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    import uvicorn
    from prefect.cli import app

    serve = uvicorn.run
    setattr(uvicorn, "run", lambda app, **options: serve(Handshakes(app), **options, **LIMITS))  # noqa: B010 - Prefect's command has no such option
    app()


def _refuse_unusable_database() -> None:
    """Raise BadInput if the local SQLite database is damaged, locked, or not a file. Prefect itself would print a page of text."""
    if any(name.startswith("PREFECT_SERVER_DATABASE_") or name == "PREFECT_API_DATABASE_CONNECTION_URL" for name in os.environ):
        return  # the server uses another database
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    file = home / "prefect.db"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=PATIENCE)) as database:
            database.execute("BEGIN IMMEDIATE")  # needs the write lock
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise BadInput(f"{file}: cannot use Prefect's database ({error}); repair or move it, or set PREFECT_HOME") from error


class Handshakes:
    """ASGI middleware that limits the memory that clients can take over websockets before they have logged in.

    It refuses websockets beyond MOST_WAITING, and closes silent ones after SECONDS. Prefect accepts any websocket, and reads the login
    from its first message. By default, uvicorn buffers 32 messages of 16 MB for each open websocket.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
        elif self._waiting >= MOST_WAITING:
            await send({"type": "websocket.close", "code": 1013})
        else:
            await self._until_first_message(scope, receive, send)

    async def _until_first_message(self, scope: Scope, receive: Receive, send: Send) -> None:
        waiting = True
        self._waiting += 1

        def done() -> None:
            nonlocal waiting
            self._waiting -= waiting
            waiting = False

        async def first() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and waiting:
                done()
                limit.reschedule(None)
            return message

        try:
            async with asyncio.timeout(SECONDS) as limit:
                await self.app(scope, first, send)
        except TimeoutError:
            if not limit.expired():
                raise
            await send({"type": "websocket.close", "code": 1008})
        finally:
            done()


if __name__ == "__main__":
    main()
