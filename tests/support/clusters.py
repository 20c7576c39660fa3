"""A Dask cluster for tests: a scheduler and workers in a project's folder, as on machines that share it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from machines import Machine
from processes import started

LOG = "{}.log"
HERE = Machine("here", "127.0.0.1")


@contextmanager
def cluster(
    folder: Path, port: int, workers: Mapping[str, tuple[str, ...]], *, at: Mapping[str, Machine] | None = None, **environment: str
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Runs a scheduler and, by their names, workers with some more arguments; gives their processes, by their names. Each worker's output
    is in <name>.log. at: the machines of those that are not on this one, `scheduler` too."""
    at = at or {}

    def on(name: str, *command: str) -> tuple[str, ...]:
        return at[name].command(*command) if name in at else command

    address = at.get("scheduler", HERE).address
    scheduler = ("dask", "scheduler", "--host", address, "--port", str(port), "--no-dashboard")
    with ExitStack() as stack:
        stack.enter_context(started(folder, *on("scheduler", *scheduler), log=LOG.format("scheduler")))
        running = {}
        for name, arguments in workers.items():
            own = ("--host", at.get(name, HERE).address, "--nthreads", "1", "--no-nanny", "--no-dashboard", *arguments)
            command = on(name, "dask", "worker", f"tcp://{address}:{port}", *own)
            running[name] = stack.enter_context(started(folder, *command, log=LOG.format(name), **environment))
        yield running
