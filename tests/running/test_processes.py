"""Training with several processes: they come to what one comes to, and one that is lost costs a start from the last checkpoint."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, make_pairs
from torch import nn

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.detectors.residual.settings import MetricResidualSettings
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.training.loop import Examples, Trained, TrainingFolders
from changepair.tasks.training.processes import Job, count_of, train
from changepair.tasks.training.settings import PairTrainingSettings
from changepair.tasks.training.step import SharedBatchNorm, share_statistics

METAUAS = MetaUASSettings(resolution=64, decoder_channels=(16, 16, 16, 16, 16))
SYNTHESIS = SynthesisSettings(pairs=40, pairs_per_shard=20, resolution=64, kinds={"local-region": 0.9, "none": 0.1}, held_out=0.1)
SETTINGS = PairTrainingSettings(epochs=6, batch_size=4, learning_rate=1e-4, log_every=1, checkpoint_every=5, precision="no", average=0.9)


@pytest.fixture
def pairs(layout: Path) -> Path:
    return make_pairs(layout, SYNTHESIS, layout.parent / "pairs")


def job(pairs: Path, name: str, detector: Any = METAUAS, settings: PairTrainingSettings = SETTINGS) -> Job:
    examples = Examples(pairs, SYNTHESIS.augmentation)
    folder = pairs.parent / name
    return Job(
        "changepair.tasks.detectors.train", detector, settings, examples, TrainingFolders(folder, folder.with_suffix(".checkpoints")), 0
    )


def losses(job: Job) -> list[float]:
    with (job.places.model_folder / "training_log.csv").open() as stream:
        return [float(line["loss"]) for line in csv.DictReader(stream)]


def alike(one: Job, other: Job) -> bool:
    """Whether two trainings had the same losses: to 1e-5; of MetaUAS to 1e-4, whose normalisations leave gradients near 0 that Adam brings
    to the size of all others, rounding and all. How exact the processes' gradients are is tested in float64."""
    return losses(one) == pytest.approx(losses(other), abs=1e-4 if one.detector is METAUAS else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("detector", [METAUAS, MetricResidualSettings(resolution=64)], ids=["metauas", "metric-residual"])
def test_two_processes_come_to_what_one_comes_to(pairs: Path, detector: Any) -> None:
    """Over 54 steps in float32, with the same whole batch; its statistics and couples are those of the whole."""
    shares: list[float] = []
    one, two = (job(pairs, name, detector) for name in ("one", "two"))
    alone, together = train(one, 1), train(two, 2, shares.append)
    assert together.steps == alone.steps == 54 and together.held_out_loss == pytest.approx(alone.held_out_loss, abs=1e-4)
    assert alike(one, two)
    assert shares == sorted(shares) and shares and not list(pairs.parent.glob("*.processes"))


GRADIENTS = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.metauas.settings import MetaUASSettings
from changepair.tasks.training.step import rank, share_statistics

settings = MetaUASSettings(resolution=64, decoder_channels=(16,) * 5)
torch.manual_seed(0)
network = model = create_detector(settings, build_encoder(settings.encoder, 64)).double().train()
model.encoder.double()
queries, prompts = torch.rand(2, 4, 3, 64, 64, dtype=torch.float64)
masks = (torch.rand(4, 64, 64) > 0.8).double()
own = slice(None)
if sys.argv[1] == "2":
    dist.init_process_group("gloo")
    share_statistics(model)
    network, own = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False), slice(rank(), None, 2)
nn.functional.binary_cross_entropy_with_logits(network(queries[own], prompts[own]), masks[own]).backward()
if rank() == 0:
    statistics = {name: value for name, value in model.named_buffers() if "running" in name and not name.startswith("encoder.")}
    torch.save(statistics | {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}, sys.argv[2])
"""


@pytest.mark.slow
def test_in_float64_two_processes_have_the_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    program = tmp_path / "gradients.py"
    program.write_text(GRADIENTS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for count, before in (("1", []), ("2", launcher)):
        command = [sys.executable, *before, str(program), count, str(tmp_path / count)]
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / count) for count in ("1", "2"))
    assert one.keys() == two.keys() and sum("running" in name for name in one) >= 20
    for name, value in one.items():
        assert float((two[name] - value).abs().max()) <= 1e-6 * float(value.abs().max()) + 1e-15, name


def during(work: Callable[[], Trained], meanwhile: Callable[[list[psutil.Process]], bool]) -> Trained:
    """Trains, and beside it does something once with the processes of the training."""

    def watch() -> None:
        for _ in range(600):
            time.sleep(0.1)
            with suppress(psutil.NoSuchProcess):
                workers = [one for one in psutil.Process().children(recursive=True) if "--work" in one.cmdline()]
                if len(workers) >= 2 and meanwhile(workers):
                    return

    beside = threading.Thread(target=watch)
    beside.start()
    try:
        return work()
    finally:
        beside.join()


@pytest.mark.slow
def test_a_process_that_is_killed_costs_a_start_from_the_last_checkpoint(pairs: Path) -> None:
    one, two = job(pairs, "one"), job(pairs, "two")
    train(one, 1)
    killed: list[int] = []

    def kill(workers: list[psutil.Process]) -> bool:
        if not (two.places.checkpoints / "checkpoint.pt").is_file():
            return False
        killed.append(workers[-1].pid)
        workers[-1].kill()
        return True

    trained = during(lambda: train(two, 2), kill)
    assert killed and trained.steps == 54 and alike(one, two)


PLANT = """
import base64, os, pickle, sys
from datetime import timedelta
from torch.distributed import TCPStore

class Evil:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)

store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=10))
for key in {"torch.rendezvous.none", *store.list_keys()}:
    store.set(key, base64.b64encode(pickle.dumps(Evil())))
"""


@pytest.mark.slow
@pytest.mark.attack
def test_what_others_write_to_a_port_of_a_training_is_not_unpickled(pairs: Path, tmp_path: Path) -> None:
    """The launcher of torch keeps its state pickled, and looks at it every few seconds. What is planted may end the training."""
    planted: list[int] = []

    def plant(workers: list[psutil.Process]) -> bool:
        every = {
            parent for worker in workers for parent in worker.parents() if "changepair.tasks.training.processes" in parent.cmdline()
        } | set(workers)
        ports = [one.laddr.port for process in every for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        for port in ports:
            subprocess.run([sys.executable, "-c", PLANT, str(port), str(tmp_path / "pwned")], capture_output=True, timeout=120)
        planted.extend(ports)
        time.sleep(12 if ports else 0)
        return bool(ports)

    with suppress(RuntimeError):
        during(lambda: train(job(pairs, "two", settings=replace(SETTINGS, epochs=40)), 2), plant)
    assert planted and not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_asked_to_end_all_of_them_end_and_the_next_run_goes_on(pairs: Path, polite: Iterator[None]) -> None:
    one, two = job(pairs, "one"), job(pairs, "two")
    train(one, 1)

    def stop(_workers: list[psutil.Process]) -> bool:
        if (two.places.checkpoints / "checkpoint.pt").is_file():
            os.kill(os.getpid(), signal.SIGTERM)
            return True
        return False

    with pytest.raises(stopping.Stopped, match="with several processes"):
        during(lambda: train(two, 2), stop)
    assert not [child for child in psutil.Process().children(recursive=True) if "--work" in child.cmdline()]
    assert (two.places.checkpoints / "checkpoint.pt").is_file() and not (two.places.model_folder / "model.safetensors").exists()
    stopping._asked.clear()
    assert train(two, 2).steps == 54 and alike(one, two)


@pytest.mark.slow
def test_a_fault_of_the_one_who_waits_ends_the_processes_too(pairs: Path) -> None:
    def report(_share: float) -> None:
        raise ConnectionError("the server is away")

    with pytest.raises(ConnectionError, match="the server is away"):
        train(job(pairs, "two"), 2, report)
    assert not [child for child in psutil.Process().children(recursive=True) if "--work" in child.cmdline()]
    assert not list(pairs.parent.glob("*.processes"))


@pytest.mark.slow
def test_what_the_processes_refuse_is_told_as_one_process_would(pairs: Path) -> None:
    with pytest.raises(BadInput, match=r"training\.two\.batch_size: 5 is not divisible by 2 processes"):
        train(job(pairs, "two", settings=replace(SETTINGS, batch_size=5)), 2)


def test_auto_is_one_a_gpu_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert (count_of("auto"), count_of(3)) == (8, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert count_of("auto") == 1


def test_alone_shared_statistics_are_pytorchs() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    shared = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    shared.load_state_dict(plain.state_dict())
    share_statistics(shared)
    assert isinstance(shared[1], SharedBatchNorm) and shared.state_dict().keys() == plain.state_dict().keys()
    picture = torch.randn(5, 3, 8, 8)
    for training in (True, False):
        plain.train(training), shared.train(training)
        assert np.array_equal(plain(picture).detach(), shared(picture).detach())
