"""The training loop: any course, on any device, killed and gone on with as if nothing had been."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tasks import checkpoint, models, stopping
from tasks.checkpoint import Progress
from tasks.devices import best_device, computes_bf16
from tasks.errors import BadInput
from tasks.training.settings import TrainingSettings
from tasks.training_log import LogLine, write_log
from tasks.weights import save_model

CODE = [Path(models.__path__[0]), Path(__file__).parent]
Batch = tuple[Tensor, ...]


class Course(Protocol):
    """What is trained, on what, and what is wrong with it."""

    examples: int
    """An epoch has of them."""

    @property
    def model(self) -> nn.Module: ...

    def epoch(self, number: int) -> Dataset[Batch]:
        """The epoch's examples."""
        ...

    def order(self, number: int) -> list[int]:
        """In which order the epoch takes its examples; drawn from the seed and the epoch alone, so that it can be gone on with."""
        ...

    def held_out(self) -> Dataset[Batch] | None:
        """Examples that are never trained on."""
        ...

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class Places:
    """Where a training reads and writes."""

    model_folder: Path
    checkpoints: Path


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    steps: int
    loss: float  # mean of the last log line
    held_out_loss: float | None  # after the last epoch


def accelerator_for(settings: TrainingSettings) -> Accelerator:
    AcceleratorState._reset_state()  # a process has one, in one precision; the training before this may have had another
    if settings.precision != "auto":
        return Accelerator(mixed_precision=settings.precision)
    return Accelerator(mixed_precision="bf16" if computes_bf16(best_device()) else "no")


def begin(settings: TrainingSettings) -> None:
    """To be called before a model is built: what starts at random in it, and the loop after it, come from the seed."""
    set_seed(settings.seed)


def fit(
    course: Course,
    settings: TrainingSettings,
    places: Places,
    *,
    accelerator: Accelerator,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    workers: int,
    report: Callable[[float], None],
) -> Trained:
    """Trains; writes model.safetensors, config.json (config, and how it was trained) and training_log.csv to the model folder.

    A run that was killed goes on from its last checkpoint and ends with the model an undisturbed run gives. inputs: all that the
    result depends on beside the settings and the code; a checkpoint of others is not gone on with. report is called with the share
    of the training done, 0..1. workers processes read examples when there is a GPU; on a CPU the training itself needs the cores.
    Raises BadInput if there are too few examples for one step.
    """
    steps_an_epoch = course.examples // (settings.batch_size * accelerator.num_processes)
    if steps_an_epoch == 0:
        raise BadInput(
            f"training: {course.examples} examples do not fill one batch of {settings.batch_size} on {accelerator.num_processes} devices; "
            "raise synthesis.pairs, add pictures, or lower the training's batch_size in pipelines.yaml"
        )
    steps = settings.epochs * steps_an_epoch
    weights = [tensor for tensor in course.model.parameters() if tensor.requires_grad]
    optimizer = AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = LambdaLR(optimizer, _learning_rate(settings, steps))
    name = checkpoint.fingerprint({"config": config, "settings": asdict(settings), **inputs}, CODE)
    progress = checkpoint.resume(places.checkpoints, name, course.model, optimizer, schedule)
    prepared, optimizer = accelerator.prepare(course.model, optimizer)

    readers = workers if accelerator.device.type != "cpu" else 0
    held_out = course.held_out()
    bar = tqdm(
        total=steps,
        initial=progress.step,
        desc=f"train {config['detector']}",
        unit="step",
        mininterval=5,
        disable=not accelerator.is_main_process,
    )
    while progress.step < steps:
        epoch, done = divmod(progress.step, steps_an_epoch)
        batches = _batches(course.order(epoch), settings.batch_size)[: steps_an_epoch * accelerator.num_processes]
        loader = accelerator.prepare(
            DataLoader(
                course.epoch(epoch),
                batch_sampler=batches[done * accelerator.num_processes :],
                num_workers=readers,
                pin_memory=readers > 0,
            )
        )
        prepared.train()
        for batch in loader:
            loss = course.loss(prepared, batch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()

            progress.step += 1
            progress.losses.append(float(accelerator.gather(loss.detach()).mean()))
            epoch_ends = progress.step % steps_an_epoch == 0
            if epoch_ends or progress.step % settings.log_every == 0:
                measured = _measure(accelerator, prepared, course, held_out, settings.batch_size) if epoch_ends and held_out else None
                _log(progress, epoch, float(schedule.get_last_lr()[0]), measured)
                bar.set_postfix(loss=f"{progress.log[-1].loss:.4f}", refresh=False)
                report(progress.step / steps)
            asked = stopping.asked()
            if accelerator.is_main_process and (asked or progress.step % settings.checkpoint_every == 0):
                checkpoint.save(places.checkpoints, name, accelerator.unwrap_model(prepared), optimizer, schedule, progress)
            bar.update()
            if asked:
                bar.close()
                raise stopping.Stopped(f"train {config['detector']}, step {progress.step} of {steps}")
    bar.close()

    if accelerator.is_main_process:
        write_log(places.model_folder, progress.log)
        save_model(
            places.model_folder,
            accelerator.unwrap_model(prepared),
            {**config, "training": asdict(settings), "examples": course.examples},
        )
        shutil.rmtree(places.checkpoints, ignore_errors=True)
    last = progress.log[-1]
    return Trained(progress.step, last.loss, last.held_out_loss)


def _batches(order: list[int], size: int) -> list[list[int]]:
    """Full batches only."""
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


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
def _measure(accelerator: Accelerator, model: Any, course: Course, examples: Dataset[Batch], batch_size: int) -> float:
    """Mean loss over the held-out examples."""
    model.eval()
    total, count = 0.0, 0
    for batch in DataLoader(examples, batch_size):
        batch = tuple(part.to(accelerator.device) for part in batch)
        with accelerator.autocast():
            total += float(course.loss(model, batch)) * len(batch[0])
        count += len(batch[0])
    model.train()
    return total / count
