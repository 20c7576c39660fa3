"""Starts the Prefect server with the settings that this project wants of it: on loopback, telling nobody."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

from rich.console import Console

from tasks.common.errors import BadInput

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_UI_API_URL": "/api",  # of this server, whatever its port and name; by default pages ask port 4200 of the viewer's machine
}
AUTHENTICATION = "PREFECT_SERVER_API_AUTH_STRING"


def start(host: str, port: int) -> None:
    """Becomes `prefect server start`. Raises BadInput if the port is taken, or others could reach a server without a password."""
    if not _is_loopback(host) and not os.environ.get(AUTHENTICATION):
        raise BadInput(f"--host {host}: others could do with the server what they like; set {AUTHENTICATION}=<name>:<password> first")
    _refuse_taken(host, port)
    shown = f"[{host}]" if ":" in host else host
    console = Console()
    console.print(f"Prefect UI: http://{shown}:{port}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"for the runs: export PREFECT_API_URL=http://{shown}:{port}/api", soft_wrap=True, highlight=False, markup=False)
    environment = {**SETTINGS, **os.environ}
    environment.pop("PREFECT_API_URL", None)  # it is this one
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse_taken(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as error:
        raise BadInput(f"--port {port}: {host} cannot be listened on there ({error.strerror}); is a server running already?") from error
