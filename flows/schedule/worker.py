"""Prefect's process worker, which takes neither command, environment nor folder from the server.

They are in the template of the work pool and in the job variables of deployments and runs. Whoever has the login can edit those.
"""

from __future__ import annotations

import signal
import warnings
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from changepair.flows.schedule.commands import own
from changepair.flows.schedule.entry import take_no_code_from_the_server
from changepair.flows.schedule.work import ENGINE


class Job(ProcessJobConfiguration):
    """The process of a run: Prefect's engine, in an empty folder, with the environment of the worker."""

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: PrefectClient | None = None
    ) -> Job:
        """Ignore the template and the job variables."""
        return cls(command=command_to_string(own(ENGINE)))


def main() -> None:
    """Run Prefect's own command, with the arguments that this one has, and this worker for work pools of the type `process`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it takes the place of Prefect's

        class _Worker(ProcessWorker):
            job_configuration = Job

    take_no_code_from_the_server()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which Prefect's worker sends itself to end
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
