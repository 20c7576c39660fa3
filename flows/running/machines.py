"""Spreads a training over the machines of a Dask cluster."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changepair.flows.settings.pipelines import Execution
from changepair.tasks.common.errors import BadInput
from changepair.tasks.training.processes import Attendance, Machines, Meeting, ThisMachine, attend

LOST = 15.0  # seconds


@dataclass(frozen=True)
class MachinesOfCluster:
    """One worker of each machine runs the launcher there. The project's folder is one that all of them see."""

    execution: Execution
    several = True

    @contextmanager
    def attend(self, folder: Path, processes: int | str) -> Iterator[Sequence[Attendance]]:
        """Raises BadInput if the cluster has fewer machines than `execution.nodes`."""
        from distributed import Client

        with Client(self.execution.address, set_as_default=False) as client:
            chosen = self._one_a_machine(client.scheduler_info(n_workers=-1)["workers"])
            own: dict[str, Any] = {"pure": False, "retries": 0}
            own |= {"resources": {self.execution.gpu: 1}} if self.execution.gpu is not None else {}
            (first, worker), name = next(iter(chosen.items())), uuid.uuid4().hex
            place = f"{first}:{client.submit(free_port, workers=[worker], pure=False).result()}"
            meetings = {address: Meeting(place, name, len(chosen), address) for address in chosen}
            futures = [client.submit(attend, folder, processes, meetings[one], workers=[worker], **own) for one, worker in chosen.items()]
            yield [_Attended(client, future, worker) for future, worker in zip(futures, chosen.values(), strict=True)]

    def _one_a_machine(self, workers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Gives address -> worker of as many machines as are asked for."""
        execution = self.execution
        able = sorted(worker for worker, about in workers.items() if execution.gpu is None or about["resources"].get(execution.gpu))
        of_machine = {workers[worker]["host"]: worker for worker in reversed(able)}
        if len(of_machine) < execution.nodes:
            having = "" if execution.gpu is None else f" that have {execution.gpu}"
            raise BadInput(
                f"execution.nodes: {execution.nodes}, and the cluster at {execution.address} has workers{having} on {len(of_machine)} "
                "machines; start `dask worker` on more, or ask for fewer"
            )
        return {address: of_machine[address] for address in sorted(of_machine)[: execution.nodes]}


class _Attended:
    """The launcher of a worker, which may be lost with it: what was to be done there would wait for it to come back."""

    def __init__(self, client: Any, future: Any, worker: str) -> None:
        self.client, self.future, self.worker = client, future, worker
        self._seen = time.monotonic()

    def done(self) -> bool:
        """Whether it has ended, or its worker has not been heard of for LOST seconds."""
        if self.future.done():
            return True
        if self.worker in self.client.scheduler_info(n_workers=-1)["workers"]:
            self._seen = time.monotonic()
        return time.monotonic() - self._seen > LOST

    def failure(self) -> str:
        """Says why it failed, if it is known; "" else."""
        if not self.future.done():
            return f"{self.worker} is lost"
        error = self.future.exception(timeout=1) if self.future.status == "error" else None
        return "" if error is None else f"{self.worker}: {type(error).__name__}: {error}"


def machines_of(execution: Execution) -> Machines:
    """Gives the machines that train."""
    return MachinesOfCluster(execution) if execution.nodes > 1 else ThisMachine()


def free_port() -> int:
    """Finds a port that nothing listens on, of all of this machine's addresses."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
