"""Train any task on any device. A killed training resumes from its checkpoint and writes the same bytes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from changepair.tasks.common import stopping
from changepair.tasks.common.devices import best_device, computes_bf16
from changepair.tasks.common.errors import BadInput
from changepair.tasks.encoders.encoder import multiply_exactly
from changepair.tasks.synthesis.settings import AugmentationSettings
from changepair.tasks.training import checkpoint
from changepair.tasks.training.log import LogLine, write_log
from changepair.tasks.training.settings import TrainingSettings
from changepair.tasks.training.step import Batch, Step, compiled, pays, share_statistics
from changepair.tasks.training.tracking import Tracking, tracked

PEAK, FIRST = 0.3, 1 / 25  # one-cycle: share of the steps at which the learning rate peaks, and its initial share of the peak


class Task(Protocol):
    """Define a training: its model, examples and loss, and the files that it writes."""

    name: str
    model: nn.Module

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """List the indices of each batch's examples. They depend only on the seed and the epoch, so an epoch can be resumed."""
        ...

    def examples(self, epoch: int) -> Dataset[Any]:
        """Return the examples that the indices select."""
        ...

    def example(self, place: int) -> str:
        """Name an example in error messages."""
        ...

    def collate(self, examples: Any) -> Batch:
        """Join a list of examples to a batch. A dataset may return a batch itself."""
        ...

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the mean loss of a batch."""
        ...

    def held_out(self) -> Dataset[Any] | None:
        """Return the held-out examples, whose loss is measured after every epoch; None without them."""
        ...

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write the trained model to a folder."""
        ...


@dataclass(frozen=True)
class Examples:
    """The training data of a detector."""

    path: Path
    """Folder of change pairs, or table of labelled pictures. The training's settings determine which."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """Change of appearance that the pairs were made with."""


@dataclass(frozen=True)
class TrainingFolders:
    """Folders that a training writes, and its trackers."""

    model_folder: Path
    checkpoints: Path
    tracking: Tracking = Tracking()
    room: int = 0
    """Largest size in bytes of the temporary file of encoded pairs, in the folder of the checkpoints. It affects speed only."""


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    steps: int
    """Number of steps taken."""
    loss: float
    """Loss in the last row of the log."""
    held_out_loss: float | None
    """Held-out loss of the saved model."""
    epoch: int
    """Epoch of the saved model, from 0."""
    parts: int
    """Number of parts that each batch was split into because of short memory."""


def accelerator_for(precision: Literal["auto", "no", "bf16", "fp16"]) -> Accelerator:
    """Return an accelerator for a precision, as in `TrainingSettings.precision`."""
    AcceleratorState._reset_state()  # a process has one state with one precision; an earlier training may have used another
    if precision == "auto":
        precision = "bf16" if computes_bf16(best_device()) else "no"
    # Buffers need no broadcast: those of the encoder never change, and every process has the statistics of the whole batch.
    alike = DistributedDataParallelKwargs(broadcast_buffers=False)
    # Without cpu=True, accelerate treats several processes on a CPU as separate trainings.
    return Accelerator(mixed_precision=precision, cpu=best_device().type == "cpu", kwargs_handlers=[alike])


def constant(step: int, steps: int, *, warm_up: float = 0.0) -> float:
    """Rise from 0 to 1 over a share of the steps."""
    return min(1.0, (step + 1) / (warm_up * steps)) if warm_up > 0 else 1.0


def cosine(step: int, steps: int, *, warm_up: float = 0.0) -> float:
    """Fall from 1 to 0 as a cosine (Loshchilov and Hutter, ICLR 2017, without restarts), times a rise over a share of the steps."""
    return constant(step, steps, warm_up=warm_up) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def one_cycle(step: int, steps: int, *, warm_up: float = 0.0) -> float:
    """Rise from FIRST to 1 over PEAK of the steps, then fall to 0. Both parts are cosines, as in PyTorch (Smith and Topin, 2018)."""
    share = min(step / steps, 1.0)
    if share < PEAK:
        return constant(step, steps, warm_up=warm_up) * (FIRST + (1 - FIRST) * 0.5 * (1 - math.cos(math.pi * share / PEAK)))
    return 0.5 * (1 + math.cos(math.pi * (share - PEAK) / (1 - PEAK)))


SCHEDULES = {"constant": constant, "cosine": cosine, "one-cycle": one_cycle}


def fit(
    task: Task,
    settings: TrainingSettings,
    places: TrainingFolders,
    *,
    inputs: Mapping[str, Any],
    workers: int,
    report: Callable[[float], None],
    factor: Callable[[int, int], float] | None = None,
) -> Trained:
    """Train a task. Write its model and training_log.csv to the model folder.

    `inputs` is everything that the training depends on, except its code. A checkpoint with other inputs is discarded. `workers` processes
    read examples. `report` receives the share of the steps that is done, 0 to 1. `factor` returns the factor of the learning rate from a
    step and the number of steps; None follows the settings. Raises BadInput without a full batch, or if a step fails
    (tasks/training/step.py). Raises Stopped after SIGTERM.
    """
    accelerator = accelerator_for(settings.precision)
    _check(task, settings, accelerator.num_processes)
    training = _Training(
        task, settings, places, accelerator, inputs, factor or partial(SCHEDULES[settings.schedule], warm_up=settings.warm_up)
    )
    progress, steps, title = training.progress, training.steps, f"train {task.name}"
    hidden = {} if accelerator.is_main_process else {"disable": True}  # disable=False would override TQDM_DISABLE
    about = {"task": task.name, "steps": steps, "epochs": settings.epochs, "learning_rate": settings.learning_rate}
    with (
        tracked(places.tracking if accelerator.is_main_process else Tracking(), about) as trackers,
        tqdm(total=steps, initial=progress.step, desc=title, unit="step", mininterval=5, **hidden) as bar,
    ):
        while progress.step < steps and not _over(progress.log, settings.patience):
            for batch in training.rest_of_epoch(workers):
                asked = training.take(batch)
                if training.epoch_ends or progress.step % settings.log_every == 0:
                    line = training.log()
                    trackers.write(asdict(line), progress.step)
                    bar.set_postfix(loss=f"{line.loss:.4f}", refresh=False)
                    report(progress.step / steps)
                if asked or progress.step % settings.checkpoint_every == 0:
                    training.save_checkpoint()
                bar.update()
                if asked:
                    raise stopping.Stopped(f"{title}, step {progress.step} of {steps}")
                stopping.wait_while_paused()
    return training.finish()


def _check(task: Task, settings: TrainingSettings, processes: int) -> None:
    size = len(task.batches(0)[0])
    if size % processes:
        raise BadInput(
            f"training.{task.name}.batch_size: {size} is not divisible by {processes} processes; change it, or change execution.processes"
        )
    if (settings.keep == "best" or settings.patience) and task.held_out() is None:
        raise BadInput(
            f"training.{task.name}: keep: best and patience need held-out examples, but there are none; raise held_out, or remove them"
        )


class _Training:
    """Hold the state of a training: network, optimizer, schedule and progress. `fit` calls its steps."""

    def __init__(
        self,
        task: Task,
        settings: TrainingSettings,
        places: TrainingFolders,
        accelerator: Accelerator,
        inputs: Mapping[str, Any],
        factor: Callable[[int, int], float],
    ) -> None:
        self.task, self.settings, self.places, self.accelerator = task, settings, places, accelerator
        self.steps_per_epoch = len(task.batches(0))
        self.steps = settings.epochs * self.steps_per_epoch
        if accelerator.num_processes > 1:
            share_statistics(task.model)
        weights = [tensor for tensor in task.model.parameters() if tensor.requires_grad]
        optimizer = AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.scheduler = LambdaLR(optimizer, lambda step: factor(step, self.steps))
        self.name = checkpoint.name_of(inputs, type(task).__module__)
        self.kept = _Kept(task.model, settings.average)
        self.progress = checkpoint.resume(places.checkpoints, self.name, self.kept, optimizer, self.scheduler)
        multiply_exactly(accelerator.mixed_precision == "no")
        self.network, self.optimizer = accelerator.prepare(task.model, optimizer)
        if pays(accelerator, self.steps) if settings.compile is None else settings.compile:
            self.network = compiled(self.network)
        self.kept.to(accelerator.device)
        clip = settings.largest_gradient
        self.step = Step(task.name, task.loss, self.network, self.optimizer, accelerator, largest_gradient=clip, folder=places.checkpoints)

    @property
    def epoch_ends(self) -> bool:
        return self.progress.step % self.steps_per_epoch == 0

    def rest_of_epoch(self, workers: int) -> Iterator[Batch]:
        """Yield this process's share of each remaining batch of the epoch, on the device."""
        epoch, done = divmod(self.progress.step, self.steps_per_epoch)
        device, process, processes = self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes
        readers = workers if device.type != "cpu" else 0
        self.network.train()
        loader = DataLoader(
            self.task.examples(epoch),
            batch_sampler=[batch[process::processes] for batch in self.task.batches(epoch)[done:]],
            collate_fn=self.task.collate,
            num_workers=readers,
            pin_memory=readers > 0,
        )
        for batch in loader:
            yield tuple(part.to(device, non_blocking=True) for part in batch)

    def take(self, batch: Batch) -> bool:
        """Take one step. Return whether a process was asked to stop."""
        epoch, place = divmod(self.progress.step, self.steps_per_epoch)
        loss, asked = self.step.take(
            batch, self.progress.step + 1, lambda: [self.task.example(example) for example in self.task.batches(epoch)[place]]
        )
        self.scheduler.step()
        self.kept.update()
        self.progress.step += 1
        self.progress.losses.append(loss)
        return asked

    def log(self) -> LogLine:
        """Add a row to the log, at the end of an epoch with the held-out loss. Keep the best epoch's weights."""
        progress = self.progress
        held_out_loss = self._held_out_loss() if self.epoch_ends else None
        mean, rate = sum(progress.losses) / len(progress.losses), float(self.scheduler.get_last_lr()[0])
        progress.log.append(LogLine(progress.step, (progress.step - 1) // self.steps_per_epoch, mean, rate, held_out_loss))
        progress.losses.clear()
        if self.settings.keep == "best" and progress.log[-1] is _best(progress.log):
            progress.best = {tensor: value.clone() for tensor, value in checkpoint.trained_state(self.kept.model).items()}
        return progress.log[-1]

    @torch.no_grad()
    def _held_out_loss(self) -> float | None:
        """Return the mean loss over the held-out examples; None without them."""
        examples, model = self.task.held_out(), self.kept.model
        if examples is None:
            return None
        training = model.training
        model.eval()
        total, count = 0.0, 0
        for examples_of_batch in DataLoader(examples, len(self.task.batches(0)[0]), collate_fn=self.task.collate):
            batch = tuple(part.to(self.accelerator.device) for part in examples_of_batch)
            with self.accelerator.autocast():
                total += float(self.task.loss(model, batch)) * len(batch[0])
            count += len(batch[0])
        model.train(training)
        return total / count

    def save_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save(self.places.checkpoints, self.name, self.kept, self.optimizer, self.scheduler, self.progress)

    def finish(self) -> Trained:
        """Save the model and the log, and delete the checkpoints."""
        progress, last = self.progress, self.progress.log[-1]
        if progress.best:
            self.kept.model.load_state_dict(progress.best, strict=False)
        if self.accelerator.is_main_process:
            write_log(self.places.model_folder, progress.log)
            self.task.save(self.places.model_folder, self.kept.model)
            shutil.rmtree(self.places.checkpoints, ignore_errors=True)
        kept = (_best(progress.log) if progress.best else None) or last
        return Trained(progress.step, last.loss, kept.held_out_loss, kept.epoch, self.step.parts)


class _Kept(nn.Module):
    """Keep the model that is saved: the network or, with `average`, the running mean of its weights and buffers."""

    def __init__(self, network: nn.Module, average: float) -> None:
        super().__init__()
        self.network = network
        self.averaged: AveragedModel | None = None
        if average:
            # Buffers are averaged too; otherwise the batch statistics would belong to other weights.
            self.averaged = AveragedModel(network, multi_avg_fn=_running_mean(average), use_buffers=True)

    @property
    def model(self) -> nn.Module:
        return self.network if self.averaged is None else self.averaged.module

    def update(self) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)


def _running_mean(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return a function that updates the running means of tensors. A frozen encoder's tensors are shared with the network."""
    update = get_ema_multi_avg_fn(decay)

    def update_own(means: Sequence[Tensor], tensors: Sequence[Tensor], count: Tensor) -> None:
        own = [pair for pair in zip(means, tensors, strict=True) if pair[0].data_ptr() != pair[1].data_ptr()]
        if own:
            update([mean for mean, _tensor in own], [tensor for _mean, tensor in own], count)

    return update_own


def _best(log: Sequence[LogLine]) -> LogLine | None:
    """Find the epoch with the lowest held-out loss."""
    measured = [line for line in log if line.held_out_loss is not None]
    return min(measured, key=lambda line: cast(float, line.held_out_loss), default=None)


def _over(log: Sequence[LogLine], patience: int | None) -> bool:
    """Tell whether `patience` epochs brought no lower held-out loss."""
    best = _best(log)
    return patience is not None and best is not None and log[-1].epoch - best.epoch >= patience
