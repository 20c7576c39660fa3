"""Starts the Prefect server with the settings that this project wants of it: on loopback, telling nobody."""

from __future__ import annotations

import ipaddress
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from rich.console import Console

from flows.arguments import listening
from tasks.common.errors import BadInput

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_UI_API_URL": "/api",  # of this server, whatever its port and name; by default pages ask port 4200 of the viewer's machine
}
PATIENCE = 5.0  # seconds that another process may keep the database locked
AUTHENTICATION = "PREFECT_SERVER_API_AUTH_STRING"


def start(host: str, port: int) -> None:
    """Becomes `prefect server start`. Raises BadInput if the port is taken, others could reach a server without a password, or its database
    cannot be used."""
    if not _is_loopback(host) and not os.environ.get(AUTHENTICATION):
        raise BadInput(f"--host {host}: others could do with the server what they like; set {AUTHENTICATION}=<name>:<password> first")
    listening(host, port).close()
    _refuse_unusable_database()
    shown = f"[{host}]" if ":" in host else host
    console = Console()
    console.print(f"Prefect UI: http://{shown}:{port}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"for the runs: export PREFECT_API_URL=http://{shown}:{port}/api", soft_wrap=True, highlight=False, markup=False)
    environment = {**SETTINGS, **os.environ}
    environment.pop("PREFECT_API_URL", None)  # it is this one
    command = [sys.executable, "-m", "flows.running.server", "server", "start", "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def main() -> None:
    """Runs Prefect's own command, with the arguments that this one has. Ctrl-C ends it as it ends any program, until Prefect hears it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    from prefect.cli import app

    app()


def _refuse_unusable_database() -> None:
    """Raises BadInput if the database of a server on this machine is damaged, locked, or no file: Prefect says so in a page of text."""
    if any(name.startswith("PREFECT_SERVER_DATABASE_") or name == "PREFECT_API_DATABASE_CONNECTION_URL" for name in os.environ):
        return  # another one
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    file = home / "prefect.db"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=PATIENCE)) as database:
            database.execute("BEGIN IMMEDIATE")  # as one that may write
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise BadInput(f"{file}: Prefect's database cannot be used ({error}); mend or move it, or set PREFECT_HOME") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
