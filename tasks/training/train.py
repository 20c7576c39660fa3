"""Trains MetaUAS on change pairs: pixel-wise binary cross-entropy, AdamW (arXiv 2505.09265, section 4.1)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from tasks import checkpoint, models
from tasks.checkpoint import Progress
from tasks.detector_settings import MetaUASSettings
from tasks.detectors import build_detector, build_encoder
from tasks.devices import best_device, computes_bf16
from tasks.errors import BadInput
from tasks.files import sha256
from tasks.models.metauas import MetaUAS
from tasks.randomness import generator
from tasks.synthesis.shards import INDEX_NAME, read_index
from tasks.training.data import Pairs
from tasks.training.settings import TrainingSettings
from tasks.training_log import LogLine, write_log
from tasks.weights import save_model

CODE = [Path(models.__path__[0]), Path(__file__).parent]


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    steps: int
    loss: float  # mean of the last log line
    held_out_loss: float | None  # after the last epoch


def train_metauas(
    detector: MetaUASSettings,
    settings: TrainingSettings,
    *,
    pairs: Path,
    model_folder: Path,
    checkpoints: Path,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains on the shards in `pairs`; writes model.safetensors, config.json and training_log.csv to `model_folder`.

    A run that was killed goes on from its last checkpoint and ends with the model an undisturbed run gives. `report` is
    called with the share of the training done, 0..1. `workers` processes read pairs when there is a GPU; on a CPU the
    training itself needs the cores. Raises BadInput if there are too few pairs for one step.
    """
    accelerator = Accelerator(mixed_precision=_precision(settings))
    rows = read_index(pairs)
    held_out = math.ceil(len(rows) * settings.held_out)
    training = Pairs(pairs, rows[: len(rows) - held_out], detector.resolution)
    measuring = Pairs(pairs, rows[len(rows) - held_out :], detector.resolution)
    steps_an_epoch = len(training) // (settings.batch_size * accelerator.num_processes)
    if steps_an_epoch == 0:
        raise BadInput(
            f"training: {len(training)} pairs do not fill one batch of {settings.batch_size} on {accelerator.num_processes} devices; "
            "raise synthesis.pairs or lower training.batch_size in pipelines.yaml"
        )
    steps = settings.epochs * steps_an_epoch

    set_seed(settings.seed)
    model = build_detector(detector, build_encoder(detector.encoder))
    assert isinstance(model, MetaUAS)
    weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = LambdaLR(optimizer, _learning_rate(settings, steps))
    name = checkpoint.fingerprint(
        {"detector": asdict(detector), "settings": asdict(settings), "pairs": sha256(pairs / INDEX_NAME), "shards": _shards(pairs, rows)},
        CODE,
    )
    progress = checkpoint.resume(checkpoints, name, model, optimizer, schedule)
    prepared, optimizer = accelerator.prepare(model, optimizer)

    readers = workers if accelerator.device.type != "cpu" else 0
    bar = tqdm(
        total=steps, initial=progress.step, desc="train metauas", unit="step", mininterval=5, disable=not accelerator.is_main_process
    )
    while progress.step < steps:
        epoch, done = divmod(progress.step, steps_an_epoch)
        batches = _batches(settings, len(training), epoch)[: steps_an_epoch * accelerator.num_processes]
        loader = accelerator.prepare(
            DataLoader(training, batch_sampler=batches[done * accelerator.num_processes :], num_workers=readers, pin_memory=readers > 0)
        )
        prepared.train()
        for query, prompt, mask in loader:
            logits = prepared(query, prompt)
            loss = F.binary_cross_entropy_with_logits(logits.float(), mask)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()

            progress.step += 1
            progress.losses.append(float(accelerator.gather(loss.detach()).mean()))
            epoch_ends = progress.step % steps_an_epoch == 0
            if epoch_ends or progress.step % settings.log_every == 0:
                measured = _held_out_loss(accelerator, prepared, measuring, settings.batch_size) if epoch_ends and held_out else None
                _log(progress, epoch, float(schedule.get_last_lr()[0]), measured)
                bar.set_postfix(loss=f"{progress.log[-1].loss:.4f}", refresh=False)
                report(progress.step / steps)
            if accelerator.is_main_process and progress.step % settings.checkpoint_every == 0:
                checkpoint.save(checkpoints, name, accelerator.unwrap_model(prepared), optimizer, schedule, progress)
            bar.update()
    bar.close()

    if accelerator.is_main_process:
        config = {"detector": "metauas", "settings": asdict(detector), "training": asdict(settings), "pairs": len(training)}
        write_log(model_folder, progress.log)
        save_model(model_folder, accelerator.unwrap_model(prepared), config)
        shutil.rmtree(checkpoints, ignore_errors=True)
    last = progress.log[-1]
    return Trained(progress.step, last.loss, last.held_out_loss)


def _precision(settings: TrainingSettings) -> str:
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if computes_bf16(best_device()) else "no"


def _batches(settings: TrainingSettings, pairs: int, epoch: int) -> list[list[int]]:
    """The epoch's full batches, shuffled by (seed, epoch) alone, so that a resumed epoch goes on where it stopped."""
    order = generator(settings.seed, "epoch", epoch).permutation(pairs)
    return [order[start : start + settings.batch_size].tolist() for start in range(0, pairs - settings.batch_size + 1, settings.batch_size)]


def _learning_rate(settings: TrainingSettings, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step."""
    if settings.schedule == "constant":
        return lambda step: 1.0
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def _log(progress: Progress, epoch: int, learning_rate: float, held_out_loss: float | None) -> None:
    mean = sum(progress.losses) / len(progress.losses)
    progress.log.append(LogLine(progress.step, epoch, mean, learning_rate, held_out_loss))
    progress.losses.clear()


@torch.no_grad()
def _held_out_loss(accelerator: Accelerator, model: Any, pairs: Pairs, batch_size: int) -> float:
    """Mean loss a pixel over the held-out pairs."""
    model.eval()
    total = 0.0
    for query, prompt, mask in DataLoader(pairs, batch_size):
        query, prompt, mask = (part.to(accelerator.device) for part in (query, prompt, mask))
        with accelerator.autocast():
            logits = model(query, prompt)
        total += float(F.binary_cross_entropy_with_logits(logits.float(), mask)) * len(query)
    model.train()
    return total / len(pairs)


def _shards(pairs: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    return {shard: sha256(pairs / shard) for shard in dict.fromkeys(row["shard"] for row in rows)}
