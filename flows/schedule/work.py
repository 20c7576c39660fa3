"""Run a Prefect worker that lets its runs save: on SIGTERM or Ctrl-C they stop at their next checkpoint, then the worker ends.

Prefect's own worker kills its runs within a second of SIGTERM, and leaves them in the state Running.

The worker is the main function of this module. It takes no command, environment or folder from the server. Anyone with the login can edit
those in the template of the work pool, or in the job variables of deployments and runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil
from prefect.client.orchestration import PrefectClient
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from changepair.flows.running.api import logged_in, named_server
from changepair.flows.running.exit_handling import tell
from changepair.flows.schedule.commands import own
from changepair.flows.schedule.entry import take_no_code_from_the_server
from changepair.tasks.common.stopping import die_with_parent

POLL = 0.2  # seconds between two checks of the worker
REPORT = 1.0  # seconds for the worker to report runs that ended before their flow began
ENGINE, WORKER = "prefect.engine", "changepair.flows.schedule.work"  # main modules of a run's process and of the worker


def work(pool: str, *, limit: int | None, healthcheck: bool) -> int:
    """Run a worker of a work pool until SIGTERM or Ctrl-C; return its exit code. Raise BadInput if no server answers."""
    url, login = named_server()
    command = own(WORKER, "worker", "start", "--pool", pool, "--type", "process")
    command += ["--limit", str(limit)] if limit is not None else []
    command += ["--with-healthcheck"] if healthcheck else []
    os.environ.setdefault("PREFECT_WORKER_WEBSERVER_HOST", "127.0.0.1")  # Prefect's default is every address
    stop = False

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember)
    # A new session, because a terminal and some service managers send signals to all their processes.
    with logged_in(url, login):  # the worker reads the login from its environment
        worker = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
    while worker.poll() is None and not stop:
        time.sleep(POLL)
    if worker.poll() is not None:
        return worker.returncode
    process = psutil.Process(worker.pid)
    process.suspend()  # it must not start another run
    try:
        stopped = stop_runs(process)
    finally:
        process.resume()
    if stopped:
        time.sleep(REPORT)
    worker.terminate()
    return worker.wait()


def stop_runs(parent: psutil.Process) -> int:
    """Ask each run that a process started to stop, and wait for their end. Return the number of runs."""
    runs = [child for child in parent.children() if _is_run(child)]
    if runs:
        tell(f"stopping; waiting for {len(runs)} run{'s' if len(runs) > 1 else ''} to save")
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.terminate()
    while any(_lives(run) for run in runs):
        time.sleep(POLL)
    return len(runs)


def _is_run(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return ENGINE in process.cmdline()
    return False


def _lives(process: psutil.Process) -> bool:
    """Return whether a process is running. An ended child of a suspended worker stays as a zombie."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Job(ProcessJobConfiguration):
    """The process of a run: Prefect's engine in an empty folder, with the worker's environment."""

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: PrefectClient | None = None
    ) -> Job:
        """Ignore the template and the job variables."""
        return cls(command=command_to_string(own(ENGINE)))


def main() -> None:
    """Run Prefect's own command with this command's arguments, and with this worker for work pools of the type `process`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about replacing Prefect's worker

        class _Worker(ProcessWorker):
            job_configuration = Job

    take_no_code_from_the_server()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Prefect's worker sends it to itself in order to end
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
