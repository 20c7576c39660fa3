"""Trains any course, on any device, killed and gone on with as if nothing had been."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tasks.common import stopping
from tasks.common.devices import best_device, computes_bf16
from tasks.common.errors import BadInput
from tasks.training import checkpoint
from tasks.training.checkpoint import Progress
from tasks.training.log import LogLine, write_log
from tasks.training.settings import TrainingSettings

Batch = tuple[Tensor, ...]


class Course(Protocol):
    """A course of training: what learns, from which examples, by which loss, and what is kept of it."""

    name: str

    @property
    def model(self) -> nn.Module:
        """The network that learns."""
        ...

    @property
    def state(self) -> nn.Module:
        """All that a checkpoint keeps: the model, or more."""
        ...

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """Lists the places of each batch's examples; drawn from the seed and the epoch alone, so that an epoch can be gone on with."""
        ...

    def examples(self, epoch: int) -> Dataset[Any]: ...

    def collate(self, examples: list[Any]) -> Batch: ...

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor: ...

    def stepped(self) -> None:
        """Called after each step."""
        ...

    def measure(self, model: nn.Module, accelerator: Accelerator) -> float | None:
        """Gives the mean loss over examples that are never trained on; None if there are none."""
        ...

    def save(self, folder: Path, model: nn.Module) -> None:
        """Writes what was learnt."""
        ...


@dataclass(frozen=True)
class Pace:
    """The pace at which a course is taken and written down."""

    epochs: int
    learning_rate: float
    weight_decay: float
    schedule: Callable[[int, int], float]
    """The factor on the learning rate at a step, of so many."""
    log_every: int
    """Steps."""
    checkpoint_every: int
    """Steps."""
    largest_gradient: float | None = None
    """Norm that gradients are clipped to."""


@dataclass(frozen=True)
class Examples:
    """The examples that a pipeline has to learn from."""

    pairs: Path
    """The folder of its change pairs."""
    auxiliary: Path
    """The table of its labelled pictures."""


@dataclass(frozen=True)
class Places:
    """The folders that a training writes to."""

    model_folder: Path
    checkpoints: Path


@dataclass(frozen=True)
class Trained:
    """The outcome of a training."""

    steps: int
    loss: float  # mean of the last log line
    held_out_loss: float | None  # after the last epoch


def accelerator_for(precision: Literal["auto", "no", "bf16", "fp16"]) -> Accelerator:
    AcceleratorState._reset_state()  # a process has one, in one precision; the training before this may have had another
    if precision != "auto":
        return Accelerator(mixed_precision=precision)
    return Accelerator(mixed_precision="bf16" if computes_bf16(best_device()) else "no")


def begin(seed: int) -> None:
    """Seeds what follows; to be called before a model is built, as what starts at random in it counts too."""
    set_seed(seed)


def pace_of(settings: TrainingSettings) -> Pace:
    """Gives the pace of a detector's training."""
    schedule = constant if settings.schedule == "constant" else cosine
    return Pace(settings.epochs, settings.learning_rate, settings.weight_decay, schedule, settings.log_every, settings.checkpoint_every)


def constant(step: int, steps: int) -> float:
    return 1.0


def cosine(step: int, steps: int) -> float:
    """Falls from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def fit(
    course: Course,
    pace: Pace,
    places: Places,
    *,
    accelerator: Accelerator,
    inputs: Mapping[str, Any],
    workers: int,
    report: Callable[[float], None],
) -> Trained:
    """Trains; writes what the course saves and training_log.csv to the model folder.

    A run that was killed goes on from its last checkpoint and ends with the model an undisturbed run gives. inputs: all that the
    training depends on beside its code; a checkpoint of others is thrown away. report: is told the share of the steps done, 0..1.
    Raises BadInput if there is not one whole batch, Stopped if SIGTERM came.
    """
    steps_an_epoch = len(course.batches(0)) // accelerator.num_processes
    if steps_an_epoch == 0:
        raise BadInput(
            f"training.{course.name}: its examples are not one batch for each of {accelerator.num_processes} devices; raise "
            "synthesis.pairs, add pictures, or lower its batch_size in pipelines.yaml"
        )
    steps = pace.epochs * steps_an_epoch
    weights = [tensor for tensor in course.model.parameters() if tensor.requires_grad]
    optimizer = AdamW(weights, lr=pace.learning_rate, weight_decay=pace.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: pace.schedule(step, steps))
    name = checkpoint.name_of(inputs, type(course).__module__)
    progress = checkpoint.resume(places.checkpoints, name, course.state, optimizer, schedule)
    prepared, optimizer = accelerator.prepare(course.model, optimizer)

    title = f"train {course.name}"
    bar = tqdm(total=steps, initial=progress.step, desc=title, unit="step", mininterval=5, disable=not accelerator.is_main_process)
    while progress.step < steps:
        epoch, done = divmod(progress.step, steps_an_epoch)
        prepared.train()
        for batch in _loader(course, epoch, done, steps_an_epoch, accelerator, workers):
            loss = course.loss(prepared, batch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            if pace.largest_gradient is not None:
                accelerator.clip_grad_norm_(weights, pace.largest_gradient)
            optimizer.step()
            schedule.step()
            course.stepped()

            progress.step += 1
            progress.losses.append(float(accelerator.gather(loss.detach()).mean()))
            epoch_ends = progress.step % steps_an_epoch == 0
            if epoch_ends or progress.step % pace.log_every == 0:
                measured = course.measure(prepared, accelerator) if epoch_ends else None
                _log(progress, epoch, float(schedule.get_last_lr()[0]), measured)
                bar.set_postfix(loss=f"{progress.log[-1].loss:.4f}", refresh=False)
                report(progress.step / steps)
            asked = stopping.asked()
            if accelerator.is_main_process and (asked or progress.step % pace.checkpoint_every == 0):
                checkpoint.save(places.checkpoints, name, course.state, optimizer, schedule, progress)
            bar.update()
            if asked:
                bar.close()
                raise stopping.Stopped(f"{title}, step {progress.step} of {steps}")
    bar.close()

    if accelerator.is_main_process:
        write_log(places.model_folder, progress.log)
        course.save(places.model_folder, accelerator.unwrap_model(prepared))
        shutil.rmtree(places.checkpoints, ignore_errors=True)
    last = progress.log[-1]
    return Trained(progress.step, last.loss, last.held_out_loss)


def _loader(course: Course, epoch: int, done: int, steps: int, accelerator: Accelerator, workers: int) -> Any:
    """Gives the batches of an epoch that are not taken yet, on the device."""
    readers = workers if accelerator.device.type != "cpu" else 0
    share = accelerator.num_processes
    return accelerator.prepare(
        DataLoader(
            course.examples(epoch),
            batch_sampler=course.batches(epoch)[done * share : steps * share],
            collate_fn=course.collate,
            num_workers=readers,
            pin_memory=readers > 0,
        )
    )


def _log(progress: Progress, epoch: int, learning_rate: float, held_out_loss: float | None) -> None:
    mean = sum(progress.losses) / len(progress.losses)
    progress.log.append(LogLine(progress.step, epoch, mean, learning_rate, held_out_loss))
    progress.losses.clear()
