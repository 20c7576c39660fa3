"""Run a Prefect server for one run. The server ends after the run, even if the run is killed, and never before it.

`python -m changepair.flows.running.temporary <port>` is that server. A terminal or a service may send it Ctrl-C or SIGTERM. It ignores
both, because a stopping run still reports to it. The run holds its standard input, and the server ends when that closes.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import httpx

from changepair.flows.running.secrets import hide
from changepair.flows.running.server import LIMITS, Handshakes
from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput

PATIENCE = 300.0  # seconds for the server to start; creating its database is slow on a slow disk or a busy machine
LAST = 5.0  # seconds for the server to end
POLL = 0.1  # seconds
SETTINGS = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}  # as in Prefect's temporary server
LOCKED = "5"  # seconds that another process may lock the database


def temporary_server(login: str) -> str:
    """Start a server that ends with this process; return the URL of its API.

    Raises BadInput with the reason if it does not start, Stopped on SIGTERM. Clients have to send `login`, because the server may use a
    database whose deployments a worker runs.
    """
    from prefect.settings import PREFECT_HOME, get_current_settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PREFECT_SERVER_DATABASE_TIMEOUT": LOCKED,
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": LOCKED,
        **os.environ,
        **SETTINGS,
        **get_current_settings().to_environment_variables(exclude_unset=True),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
    }
    output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server runs
    command = [sys.executable, "-m", "changepair.flows.running.temporary", str(port)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
    atexit.register(_end, server)  # after Prefect has sent its last events and logs
    url = f"http://127.0.0.1:{port}/api"
    deadline = time.monotonic() + PATIENCE
    while not _answers(url):
        stopping.check("before the run began")
        if server.poll() is not None or time.monotonic() > deadline:
            home = Path(PREFECT_HOME.value())
            raise BadInput(f"cannot start a Prefect server for this run: {_why(output)}; repair or move {home}, or set PREFECT_HOME")
        time.sleep(POLL)
    return url


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, verify=False).is_success
    except httpx.HTTPError:
        return False


def _why(output: IO[bytes]) -> str:
    """Return the error of the traceback in a server's output, else its last line."""
    output.seek(0)
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines()]
    errors = [line for line in lines if line.partition(":")[0].replace(".", "").isidentifier() and "Error" in line.partition(":")[0]]
    return hide((errors or [line for line in lines if line] or [f"it did not answer in {PATIENCE:.0f} s"])[-1])


def _end(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(timeout=LAST)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(port: int) -> None:
    """Serve until standard input closes. Exit with code 1 if the server does not start."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    import uvicorn
    from prefect.server.api.server import create_app

    app = Handshakes(create_app())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="on", **LIMITS))
    serving = threading.Thread(target=server.run)  # in the main thread it would handle signals
    serving.start()

    def end() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    serving.join()
    sys.stdout.flush()
    os._exit(0 if server.started else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
