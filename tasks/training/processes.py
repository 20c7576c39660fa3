"""Trains with several processes that share each step, one a GPU or on the cores of a machine, or of several machines. PyTorch's elastic
launcher starts them: when one is lost all begin anew from the last checkpoint.

On each machine `attend` runs the launcher, which is this module, and that runs this module once for each process (`--work`). They share a
folder: the job lies there, and what is said of it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.training.loop import Examples, Places, Trained

JOB_NAME, SHARE_NAME, REFUSED_NAME, TRAINED_NAME, OVER_NAME = "job.pickle", "share", "refused", "trained.json", "over"
ALONE = ("--rdzv-endpoint={folder}/rendezvous", "--rdzv-conf=store_type=file", "--local-addr=localhost")
"""Where the launcher of one machine alone keeps its state, which it unpickles: in a file of the user. Everyone could write to a port."""
RESTARTS = 3
POLL = 0.5  # seconds
GRACE = 20.0  # seconds that a launcher has to end by itself when all is done
PATIENCE = 60.0  # seconds until a machine that does not answer is given up
PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Job:
    """A training, as its processes are told of it."""

    module: str
    detector: Any
    settings: Any
    examples: Examples
    places: Places
    workers: int


@dataclass(frozen=True)
class Meeting:
    """Where the launchers of several machines find each other."""

    place: str
    """Host and port, on the first machine."""
    name: str
    """Of this one meeting."""
    most: int
    """Machines. It begins with fewer if the others are not there within half a minute, and goes on with fewer if they are lost."""
    address: str
    """Of the machine that is told this."""

    @property
    def arguments(self) -> list[str]:
        first = self.place.rpartition(":")[0] == self.address
        return [
            f"--nnodes=1:{self.most}",
            f"--rdzv-endpoint={self.place}",
            f"--rdzv-id={self.name}",
            f"--rdzv-conf=is_host={first}",
            f"--local-addr={self.address}",
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Gives the net to talk over: that of the address, not the one that the machine's name stands for."""
        import psutil

        nets = psutil.net_if_addrs().items()
        net = next((name for name, addresses in nets if any(one.address == self.address for one in addresses)), None)
        return {} if net is None else {"GLOO_SOCKET_IFNAME": net, "NCCL_SOCKET_IFNAME": net, "TP_SOCKET_IFNAME": net}


class Attendance(Protocol):
    """The launcher of a machine."""

    def done(self) -> bool: ...

    def failure(self) -> str:
        """Says what is known of why it ended, where that is no end of the training; "" if nothing is."""
        ...


class Machines(Protocol):
    """The machines that a training's processes run on."""

    @property
    def several(self) -> bool: ...

    def attend(self, folder: Path, processes: int | str) -> AbstractContextManager[Sequence[Attendance]]:
        """Has each machine run `attend` of a folder that all of them see."""
        ...


class ThisMachine:
    """No other."""

    several = False

    @contextmanager
    def attend(self, folder: Path, processes: int | str) -> Iterator[Sequence[Attendance]]:
        with ThreadPoolExecutor(1) as pool:
            yield [_Here(pool.submit(attend, folder, processes))]


@dataclass(frozen=True)
class _Here:
    future: Future[None]

    def done(self) -> bool:
        return self.future.done()

    def failure(self) -> str:
        error = self.future.exception() if self.future.done() else None
        return "" if error is None else f"{type(error).__name__}: {error}"


def count_of(wanted: int | str) -> int:
    """Gives the number of processes that `execution.processes` means on this machine: `auto` is one a GPU."""
    return max(1, torch.cuda.device_count()) if wanted == "auto" else int(wanted)


def train(
    job: Job, processes: int | str, report: Callable[[float], None] = lambda share: None, machines: Machines | None = None
) -> Trained:
    """Trains, in this process if it is the only one. processes: on each machine, as `count_of` takes it. Raises what a training does:
    BadInput, Stopped; RuntimeError if a process died too often."""
    machines = machines or ThisMachine()
    if not machines.several and count_of(processes) == 1:
        return _run(job, report)
    folder = job.places.checkpoints.with_name(f"{job.places.checkpoints.name}.processes")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        (folder / JOB_NAME).write_bytes(pickle.dumps(job))
        with machines.attend(folder, processes) as attendances:
            _see_through(folder, attendances, report)
            failures = [failure for one in attendances if (failure := one.failure())]
        return _outcome(folder, job, failures)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(job: Job, report: Callable[[float], None]) -> Trained:
    module: Any = import_module(job.module)
    trained: Trained = module.train(
        job.detector, job.settings, examples=job.examples, places=job.places, workers=job.workers, report=report
    )
    return trained


def _see_through(folder: Path, attendances: Sequence[Attendance], report: Callable[[float], None]) -> None:
    """Waits for the end of a training, or ends it when this process is asked to stop or fails; tells how far it is."""
    last = ""
    try:
        while not all(one.done() for one in attendances) and not (folder / TRAINED_NAME).is_file() and not stopping.asked():
            time.sleep(POLL)
            share = (folder / SHARE_NAME).read_text(encoding="utf-8") if (folder / SHARE_NAME).is_file() else ""
            if share != last:
                report(float(share))
                last = share
    finally:
        write_text(folder / OVER_NAME, "")  # else the launchers would be waited for, and they for this
    deadline = time.monotonic() + PATIENCE
    while not all(one.done() for one in attendances) and time.monotonic() < deadline:
        time.sleep(POLL)


def _outcome(folder: Path, job: Job, failures: Sequence[str]) -> Trained:
    if (folder / TRAINED_NAME).is_file():
        return Trained(**json.loads((folder / TRAINED_NAME).read_text(encoding="utf-8")))
    if (folder / REFUSED_NAME).is_file():
        raise BadInput((folder / REFUSED_NAME).read_text(encoding="utf-8"))
    stopping.check(f"train {job.places.model_folder.name}, with several processes")
    died = f"one of the processes of a training died {RESTARTS + 1} times; what it said last stands above, or in its worker's log"
    raise RuntimeError("; ".join(failures) or died)


def attend(folder: Path, processes: int | str, meeting: Meeting | None = None) -> None:
    """Runs the launcher on this machine for as long as it takes, or until the folder says that the training is over."""
    count = count_of(processes)
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **os.environ, **(meeting.environment if meeting else {})}
    arguments = meeting.arguments if meeting else [one.format(folder=folder) for one in ALONE]
    command = [sys.executable, "-m", __name__, str(count), str(folder), *arguments]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as launcher:
        over: float | None = None
        while launcher.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(POLL)
            if over is None and ((folder / OVER_NAME).is_file() or not folder.is_dir()):
                over = time.monotonic() + (GRACE if (folder / TRAINED_NAME).is_file() else 0)
            if over is not None and time.monotonic() >= over:
                launcher.terminate()
                over = math.inf


def launch(processes: int, folder: Path, meeting: Sequence[str]) -> None:
    """The launcher: starts the processes of this machine, and all of them again, wherever they are, when one is lost."""
    from torch.distributed.run import main as launcher

    _end_with_parent()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else those begun anew read where the ones before them listened
    own = [f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}", "--rdzv-backend=c10d", *meeting]
    launcher([*own, "--module", "changepair.tasks.training.processes", "--work", str(folder)])


def work(folder: Path) -> None:
    """One of the processes."""
    _end_with_parent()
    if (folder / REFUSED_NAME).is_file():  # begun anew because another has refused
        return
    job: Job = pickle.loads((folder / JOB_NAME).read_bytes())
    first = os.environ["RANK"] == "0"

    def report(share: float) -> None:
        if first:
            write_text(folder / SHARE_NAME, str(share))

    try:
        with stopping.on_sigterm():
            trained = _run(job, report)
    except BadInput as error:
        write_text(folder / REFUSED_NAME, str(error))
        return  # no failure: the launcher would try it three times more
    except stopping.Stopped:
        sys.exit(stopping.EXIT_CODE)
    if first:
        write_text(folder / TRAINED_NAME, json.dumps(asdict(trained)))
    torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    """Asks Linux for a SIGTERM when the process that started this one is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]))
    else:
        launch(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
