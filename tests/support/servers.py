"""A real Prefect server for tests and benchmarks, on loopback, with a database of its own; and questions to its API."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from processes import within

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 120.0  # seconds: a new database takes a while to be laid out on a busy machine
BUSY_TIMEOUT = 30.0  # seconds
LOGIN = ("tests", "of-changepair")
AUTHENTICATION = ":".join(LOGIN)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@cache
def new_database() -> bytes:
    """A database with its tables laid out, which takes half of a first start; once a session."""
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    with tempfile.TemporaryDirectory(prefix="changepair-prefect-") as home:
        variables = {**os.environ, "PREFECT_HOME": home}
        variables.pop("PREFECT_API_URL", None)
        subprocess.run(command, check=True, capture_output=True, env=variables, cwd=ROOT)
        return (Path(home) / "prefect.db").read_bytes()


@contextmanager
def prefect_server(home: Path, *, port: int = 0, **environment: str) -> Iterator[str]:
    """Runs `changepair ui` with its files in `home`; gives the API's URL. port: a free one if 0."""
    port = port or free_port()
    variables = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_API_AUTH_STRING": AUTHENTICATION, **environment}
    variables.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "changepair.flows.cli", "ui", "--port", str(port)]
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "prefect.db").exists() and not any("DATABASE" in name for name in environment):
        (home / "prefect.db").write_bytes(new_database())
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait(url, server, home / "server.log")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not start: {log.read_text()[-2000:]}")


def request(method: str, url: str, content: dict[str, Any] | None = None) -> Any:
    """What the API answers. A server whose database is at work answers 503 («come again»), which Prefect's own client does too."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        answer = httpx.request(method, url, json=content, auth=LOGIN, timeout=30)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            answer.raise_for_status()
            return answer.json() if answer.content else None
        time.sleep(0.5)


def ask(url: str, what: str) -> list[dict[str, Any]]:
    """Everything the API has of `what`: flow_runs, task_runs, artifacts, changepair.flows."""
    items: list[dict[str, Any]] = []
    while True:
        page = request("POST", f"{url}/{what}/filter", {"limit": 200, "offset": len(items)})
        items += page
        if len(page) < 200:
            return items


def events(url: str, name: str) -> list[dict[str, Any]]:
    """The events of a name that the server has kept; it takes them in a moment later."""
    asked = {"filter": {"event": {"name": [name]}}}
    return list(within(30, lambda: request("POST", f"{url}/events/filter", asked)["events"], name))


def own_work(url: str) -> float:
    """Seconds in which at least one of the stages' own tasks ran: neither imports, nor Prefect's and DVC's bookkeeping."""
    stages = {run["id"] for run in ask(url, "flow_runs") if not run["name"].startswith("retrain ")}
    spans = sorted(
        (datetime.fromisoformat(run["start_time"]).timestamp(), datetime.fromisoformat(run["end_time"]).timestamp())
        for run in ask(url, "task_runs")
        if run["flow_run_id"] in stages
    )
    total, reached = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
