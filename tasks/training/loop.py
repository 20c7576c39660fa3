"""Trains any task, on any device, killed and gone on with as if nothing had been."""

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
from accelerate.utils import DistributedDataParallelKwargs, set_seed
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
from changepair.tasks.training.checkpoint import Progress
from changepair.tasks.training.log import LogLine, write_log
from changepair.tasks.training.settings import TrainingSettings
from changepair.tasks.training.shared import share_statistics
from changepair.tasks.training.step import Batch, Step, compiled, pays
from changepair.tasks.training.tracking import Tracking, tracked

PEAK, FIRST = 0.3, 1 / 25  # of one-cycle: where the learning rate is highest, and how much of that it begins with


class Task(Protocol):
    """A task of training: what learns, from which examples, by which loss, and what is kept of it."""

    name: str

    @property
    def model(self) -> nn.Module:
        """The network that learns."""
        ...

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """Lists the places of each batch's examples; drawn from the seed and the epoch alone, so that an epoch can be gone on with."""
        ...

    def examples(self, epoch: int) -> Dataset[Any]: ...

    def example(self, place: int) -> str:
        """Names an example, for people."""
        ...

    def collate(self, examples: list[Any]) -> Batch: ...

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor: ...

    def held_out(self) -> Dataset[Any] | None:
        """Gives the examples that are never trained on and measured after every epoch; None if there are none."""
        ...

    def save(self, folder: Path, model: nn.Module) -> None:
        """Writes what was learnt."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The schedule at which a task is taken and written down."""

    epochs: int
    learning_rate: float
    weight_decay: float
    factor: Callable[[int, int], float]
    """The factor on the learning rate at a step, of so many."""
    log_every: int
    """Steps."""
    checkpoint_every: int
    """Steps."""
    largest_gradient: float | None = None
    """Norm that gradients are clipped to."""
    average: float = 0.0
    """Decay a step of the running mean of the weights, which is what is measured and kept; 0 for none."""
    keep_best: bool = False
    """Whether the epoch with the lowest held-out loss is kept, not the last."""
    patience: int | None = None
    """Epochs without a lower held-out loss after which it ends."""
    compile: bool | None = None
    """Whether the network is compiled; None for where that pays."""


@dataclass(frozen=True)
class Examples:
    """What a detector learns from."""

    path: Path
    """The folder of change pairs, or the table of labelled pictures: the training's settings say which."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """The change of appearance that pairs were made with."""


@dataclass(frozen=True)
class Places:
    """The folders that a training writes to."""

    model_folder: Path
    checkpoints: Path
    tracking: Tracking = Tracking()
    """Where it is logged to beside."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a training."""

    steps: int
    loss: float  # mean of the last log line
    held_out_loss: float | None  # of what is kept
    epoch: int  # whose model is kept, counted from 0
    parts: int  # that each batch was taken in, for want of memory


def accelerator_for(precision: Literal["auto", "no", "bf16", "fp16"]) -> Accelerator:
    AcceleratorState._reset_state()  # a process has one, in one precision; the training before this may have had another
    if precision == "auto":
        precision = "bf16" if computes_bf16(best_device()) else "no"
    # No buffers are sent at each step: those of the encoder never change, and statistics are of the whole batch in every process.
    alike = DistributedDataParallelKwargs(broadcast_buffers=False)
    # Several processes on a CPU it takes for so many trainings unless it is told.
    return Accelerator(mixed_precision=precision, cpu=best_device().type == "cpu", kwargs_handlers=[alike])


def begin(seed: int) -> None:
    """Seeds what follows; to be called before a model is built, as what starts at random in it counts too."""
    set_seed(seed)


def schedule_of(settings: TrainingSettings) -> Schedule:
    """Gives the schedule of a detector's training."""
    return Schedule(
        settings.epochs,
        settings.learning_rate,
        settings.weight_decay,
        partial(SCHEDULES[settings.schedule], warm_up=settings.warm_up),
        settings.log_every,
        settings.checkpoint_every,
        settings.largest_gradient,
        settings.average,
        settings.keep == "best",
        settings.patience,
        settings.compile,
    )


def constant(step: int, steps: int, *, warm_up: float = 0.0) -> float:
    return _risen(step, steps, warm_up)


def cosine(step: int, steps: int, *, warm_up: float = 0.0) -> float:
    """Falls from 1 to 0 (Loshchilov and Hutter, ICLR 2017, without restarts), after a rise over a share of the steps."""
    return _risen(step, steps, warm_up) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def one_cycle(step: int, steps: int, *, warm_up: float = 0.0) -> float:
    """Rises from FIRST to 1 over PEAK of the steps, then falls to 0, both as cosines (Smith and Topin, 2018, as PyTorch has it)."""
    share = min(step / steps, 1.0)
    if share < PEAK:
        return _risen(step, steps, warm_up) * (FIRST + (1 - FIRST) * 0.5 * (1 - math.cos(math.pi * share / PEAK)))
    return 0.5 * (1 + math.cos(math.pi * (share - PEAK) / (1 - PEAK)))


def _risen(step: int, steps: int, warm_up: float) -> float:
    """Rises from 0 to 1 over a share of the steps."""
    return min(1.0, (step + 1) / (warm_up * steps)) if warm_up > 0 else 1.0


SCHEDULES = {"constant": constant, "cosine": cosine, "one-cycle": one_cycle}


def fit(
    task: Task,
    schedule: Schedule,
    places: Places,
    *,
    accelerator: Accelerator,
    inputs: Mapping[str, Any],
    workers: int,
    report: Callable[[float], None],
) -> Trained:
    """Trains; writes what the task saves and training_log.csv to the model folder.

    A run that was killed goes on from its last checkpoint and ends with the model an undisturbed run gives. inputs: all that the
    training depends on beside its code; a checkpoint of others is thrown away. report: is told the share of the steps done, 0..1.
    Raises BadInput if there is not one whole batch, or a step fails (tasks/training/step.py); Stopped if SIGTERM came.
    """
    batches = task.batches(0)
    steps_an_epoch, shares = len(batches), accelerator.num_processes
    if len(batches[0]) % shares:
        raise BadInput(
            f"training.{task.name}: a batch of {len(batches[0])} cannot be shared by {shares} processes; give a batch_size that they "
            "divide, or other execution.processes"
        )
    if (schedule.keep_best or schedule.patience) and task.held_out() is None:
        raise BadInput(
            f"training.{task.name}: keep: best and patience need held-out examples, and there are none; raise held_out, or leave them out"
        )
    steps = schedule.epochs * steps_an_epoch
    if shares > 1:
        share_statistics(task.model)
    weights = [tensor for tensor in task.model.parameters() if tensor.requires_grad]
    optimizer = AdamW(weights, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    scheduler = LambdaLR(optimizer, lambda step: schedule.factor(step, steps))
    name = checkpoint.name_of(inputs, type(task).__module__)
    kept = _Kept(task.model, schedule)
    progress = checkpoint.resume(places.checkpoints, name, kept, optimizer, scheduler)
    multiply_exactly(accelerator.mixed_precision == "no")
    prepared, optimizer = accelerator.prepare(task.model, optimizer)
    if pays(accelerator, steps) if schedule.compile is None else schedule.compile:
        prepared = compiled(prepared)
    kept.to(accelerator.device)
    step = Step(
        task.name,
        task.loss,
        prepared,
        optimizer,
        accelerator,
        largest_gradient=schedule.largest_gradient,
        folder=places.checkpoints,
    )

    title = f"train {task.name}"
    hidden = {} if accelerator.is_main_process else {"disable": True}  # a False would show one where TQDM_DISABLE asks for none
    bar = tqdm(total=steps, initial=progress.step, desc=title, unit="step", mininterval=5, **hidden)
    tracking = places.tracking if accelerator.is_main_process else Tracking()
    with tracked(
        tracking, {"task": task.name, "steps": steps, "epochs": schedule.epochs, "learning_rate": schedule.learning_rate}
    ) as trackers:
        while progress.step < steps and not _over(progress.log, schedule.patience):
            epoch, done = divmod(progress.step, steps_an_epoch)
            prepared.train()
            for batch in _loader(task, epoch, done, accelerator, workers):
                loss, asked = step.take(batch, progress.step + 1, partial(_examples, task, epoch, progress.step % steps_an_epoch))
                scheduler.step()
                kept.stepped()

                progress.step += 1
                progress.losses.append(loss)
                epoch_ends = progress.step % steps_an_epoch == 0
                if epoch_ends or progress.step % schedule.log_every == 0:
                    measured = _measured(task, kept.model, accelerator) if epoch_ends else None
                    _log(progress, epoch, float(scheduler.get_last_lr()[0]), measured)
                    trackers.write(asdict(progress.log[-1]), progress.step)
                    if schedule.keep_best and progress.log[-1] is _best(progress.log):
                        progress.best = {tensor: value.clone() for tensor, value in checkpoint.trained_state(kept.model).items()}
                    bar.set_postfix(loss=f"{progress.log[-1].loss:.4f}", refresh=False)
                    report(progress.step / steps)
                if accelerator.is_main_process and (asked or progress.step % schedule.checkpoint_every == 0):
                    checkpoint.save(places.checkpoints, name, kept, optimizer, scheduler, progress)
                bar.update()
                if asked:
                    bar.close()
                    raise stopping.Stopped(f"{title}, step {progress.step} of {steps}")
                stopping.wait_while_paused()
    bar.close()

    if progress.best:
        kept.model.load_state_dict(progress.best, strict=False)
    if accelerator.is_main_process:
        write_log(places.model_folder, progress.log)
        task.save(places.model_folder, kept.model)
        shutil.rmtree(places.checkpoints, ignore_errors=True)
    of_kept = (_best(progress.log) if progress.best else None) or progress.log[-1]
    return Trained(progress.step, progress.log[-1].loss, of_kept.held_out_loss, of_kept.epoch, step.parts)


class _Kept(nn.Module):
    """What is kept of a training: the network that learns or, where it is asked for, the running mean of its weights and buffers."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.network = network
        self.averaged: AveragedModel | None = None
        if schedule.average:
            # The buffers too: statistics of batches are those of other weights otherwise.
            self.averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(schedule.average), use_buffers=True)

    @property
    def model(self) -> nn.Module:
        return self.network if self.averaged is None else self.averaged.module

    def stepped(self) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)


def _best(log: Sequence[LogLine]) -> LogLine | None:
    """Finds the epoch with the lowest held-out loss."""
    measured = [line for line in log if line.held_out_loss is not None]
    return min(measured, key=lambda line: cast(float, line.held_out_loss), default=None)


def _over(log: Sequence[LogLine], patience: int | None) -> bool:
    """Tells whether so many epochs brought no lower held-out loss."""
    best = _best(log)
    return patience is not None and best is not None and log[-1].epoch - best.epoch >= patience


@torch.no_grad()
def _measured(task: Task, model: nn.Module, accelerator: Accelerator) -> float | None:
    """Gives the mean loss over the examples that are held out; None if there are none."""
    examples = task.held_out()
    if examples is None:
        return None
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for examples_of_batch in DataLoader(examples, len(task.batches(0)[0])):
        batch = tuple(part.to(accelerator.device) for part in examples_of_batch)
        with accelerator.autocast():
            total += float(task.loss(model, batch)) * len(batch[0])
        count += len(batch[0])
    model.train(training)
    return total / count


def _loader(task: Task, epoch: int, done: int, accelerator: Accelerator, workers: int) -> Iterator[Batch]:
    """Gives this process's share of the batches of an epoch that are not taken yet, on the device."""
    readers = workers if accelerator.device.type != "cpu" else 0
    loader = DataLoader(
        task.examples(epoch),
        batch_sampler=[batch[accelerator.process_index :: accelerator.num_processes] for batch in task.batches(epoch)[done:]],
        collate_fn=task.collate,
        num_workers=readers,
        pin_memory=readers > 0,
    )
    for batch in loader:
        yield tuple(part.to(accelerator.device, non_blocking=True) for part in batch)


def _examples(task: Task, epoch: int, done: int) -> list[str]:
    """Names the examples of a step, of all processes."""
    return [task.example(place) for place in task.batches(epoch)[done]]


def _log(progress: Progress, epoch: int, learning_rate: float, held_out_loss: float | None) -> None:
    mean = sum(progress.losses) / len(progress.losses)
    progress.log.append(LogLine(progress.step, epoch, mean, learning_rate, held_out_loss))
    progress.losses.clear()
