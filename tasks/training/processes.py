"""Train with several processes of this machine that share each step, one for each GPU or on the CPU's cores.

PyTorch's elastic launcher starts the processes. If one dies, all restart from the last checkpoint. This module is the launcher, and it
runs this module once for each process (`--work`). They share a folder with the job and its result.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text
from changepair.tasks.training.loop import Examples, Trained, TrainingFolders

JOB_NAME, SHARE_NAME, REFUSED_NAME, TRAINED_NAME = "job.pickle", "share", "refused", "trained.json"
RESTARTS = 3
POLL = 0.5  # seconds
GRACE = 20.0  # seconds that the launcher may take to exit after the training


@dataclass(frozen=True)
class Job:
    """Describe a training to its processes."""

    module: str
    detector: Any
    settings: Any
    examples: Examples
    places: TrainingFolders
    workers: int


def count_of(wanted: int | str) -> int:
    """Return the number of processes for `execution.processes` on this machine. `auto` is one for each GPU."""
    return max(1, torch.cuda.device_count()) if wanted == "auto" else int(wanted)


def train(job: Job, processes: int | str, report: Callable[[float], None] = lambda share: None) -> Trained:
    """Train with several processes or, for one, in this process. processes: as in `count_of`.

    Raises BadInput and Stopped as `fit` does, and RuntimeError if a process dies more than RESTARTS times.
    """
    count = count_of(processes)
    if count == 1:
        return _run(job, report)
    folder = job.places.checkpoints.with_name(f"{job.places.checkpoints.name}.processes")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        (folder / JOB_NAME).write_bytes(pickle.dumps(job))
        _launched(folder, count, report)
        return _outcome(folder, job)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(job: Job, report: Callable[[float], None]) -> Trained:
    train: Callable[..., Trained] = import_module(job.module).train
    return train(job.detector, job.settings, examples=job.examples, places=job.places, workers=job.workers, report=report)


def _launched(folder: Path, count: int, report: Callable[[float], None]) -> None:
    """Run the launcher until the training ends, this process is asked to stop, or `report` fails."""
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **os.environ}
    command = [sys.executable, "-m", __name__, str(count), str(folder)]
    last = ""
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as launcher:
        try:
            while launcher.poll() is None and not (folder / TRAINED_NAME).is_file() and not stopping.asked():
                with suppress(subprocess.TimeoutExpired):
                    launcher.wait(POLL)
                share = (folder / SHARE_NAME).read_text(encoding="utf-8") if (folder / SHARE_NAME).is_file() else ""
                if share != last:
                    report(float(share))
                    last = share
            if (folder / TRAINED_NAME).is_file():
                with suppress(subprocess.TimeoutExpired):
                    launcher.wait(GRACE)
        finally:
            launcher.terminate()


def _outcome(folder: Path, job: Job) -> Trained:
    if (folder / TRAINED_NAME).is_file():
        return Trained(**json.loads((folder / TRAINED_NAME).read_text(encoding="utf-8")))
    if (folder / REFUSED_NAME).is_file():
        raise BadInput((folder / REFUSED_NAME).read_text(encoding="utf-8"))
    stopping.check(f"train {job.places.model_folder.name}, with several processes")
    raise RuntimeError(f"a training process died {RESTARTS + 1} times; see its output above")


def launch(processes: int, folder: Path) -> None:
    """Start the processes. Restart all of them if one dies."""
    from torch.distributed.run import main as launcher

    stopping.die_with_parent()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # otherwise restarted processes read the address of their predecessors
    launcher(
        [
            f"--nproc-per-node={processes}",
            f"--max-restarts={RESTARTS}",
            "--rdzv-backend=c10d",
            # The launcher unpickles its state, so it is in a file of the user: anyone could write to a port.
            f"--rdzv-endpoint={folder}/rendezvous",
            "--rdzv-conf=store_type=file",
            "--local-addr=localhost",
            "--module",
            "changepair.tasks.training.processes",
            "--work",
            str(folder),
        ]
    )


def work(folder: Path) -> None:
    """Run one of the processes."""
    stopping.die_with_parent()
    if (folder / REFUSED_NAME).is_file():  # restarted because another process refused
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
        return  # not a failure, because the launcher would retry it
    except stopping.Stopped:
        sys.exit(stopping.EXIT_CODE)
    if first:
        write_text(folder / TRAINED_NAME, json.dumps(asdict(trained)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]))
    else:
        launch(int(sys.argv[1]), Path(sys.argv[2]))
