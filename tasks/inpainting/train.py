"""Trains the small inpainting model on a pipeline's photographs: holes are cut into squares of them, and it learns what was there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from tasks import checkpoint, stopping
from tasks.devices import best_device, computes_bf16
from tasks.files import made_anew, sha256
from tasks.inpainting.holes import hole
from tasks.inpainting.inpainter import PIPELINE_NAME
from tasks.inpainting.residual import Hole, unpack
from tasks.inpainting.settings import InpainterSettings
from tasks.randomness import generator
from tasks.sampling.episodes import read_pictures
from tasks.sources import Sources
from tasks.training_log import LogLine, write_log

AVERAGING = 0.995  # decay a step of the weights' running mean, which is what is kept
WARM_UP = 50  # steps
LARGEST_GRADIENT = 1.0
HUBER = 0.5  # units of the residual from which an error counts linearly: what nothing around foretells must not blur the rest
LOG_EVERY = 50  # steps
CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    steps: int
    loss: float  # Huber loss of the residual, of the last log line


def train_inpainter(
    settings: InpainterSettings, sources: Path, *, folder: Path, checkpoints: Path, report: Callable[[float], None] = lambda share: None
) -> Trained:
    """Trains on the photographs that the table `sources` names; writes folder/pipeline and folder/training_log.csv.

    A run that was killed goes on from its last checkpoint and ends with the model an undisturbed run gives. `report` is called
    with the share of the training done, 0..1.
    """
    from tasks.inpainting.crop_pipeline import TRAINED_STEPS, new_pipeline

    device = best_device()
    torch.manual_seed(settings.seed)
    pipeline = new_pipeline(settings.resolution, settings.channels).to(device)
    network = pipeline.unet.to(memory_format=torch.channels_last).train()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))
    both = nn.ModuleDict({"network": network, "averaged": averaged})
    optimizer = AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = LambdaLR(optimizer, _learning_rate(settings.steps))
    inputs = {"settings": asdict(settings), "sources": sha256(sources)}
    name = checkpoint.fingerprint(inputs, [Path(__file__).parent])
    progress = checkpoint.resume(checkpoints, name, both, optimizer, schedule)

    images = [row["image"] for row in read_pictures(sources)]
    bar = tqdm(total=settings.steps, initial=progress.step, desc="train inpainter", unit="step", mininterval=5)
    for picture, mask, noise, moments in _batches(settings, images, TRAINED_STEPS, progress.step):
        hole_ = Hole.of(picture.to(device), mask.to(device))
        wanted = hole_.residual()
        noisy = pipeline.scheduler.add_noise(wanted, noise.to(device), moments.to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
            said = unpack(network(hole_.seen(noisy), moments.to(device)).sample)
        loss = (F.huber_loss(said.float(), wanted, reduction="none", delta=HUBER) * hole_.mask).sum() / (3 * hole_.mask.sum())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)

        progress.step += 1
        progress.losses.append(float(loss.detach()))
        if progress.step % LOG_EVERY == 0 or progress.step == settings.steps:
            mean = sum(progress.losses) / len(progress.losses)
            progress.log.append(LogLine(progress.step, 0, mean, float(schedule.get_last_lr()[0])))
            progress.losses.clear()
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            report(progress.step / settings.steps)
        asked = stopping.asked()
        if asked or progress.step % CHECKPOINT_EVERY == 0:
            checkpoint.save(checkpoints, name, both, optimizer, schedule, progress)
        bar.update()
        if asked:
            bar.close()
            raise stopping.Stopped(f"train inpainter, step {progress.step} of {settings.steps}")
    bar.close()

    network.load_state_dict(averaged.module.state_dict())
    write_log(folder, progress.log)
    with made_anew(folder / PIPELINE_NAME) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Trained(progress.step, progress.log[-1].loss)


def _learning_rate(steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step: up over WARM_UP steps, then down to 0 as a cosine."""
    return lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def _batches(settings: InpainterSettings, images: Sequence[str], moments: int, done: int) -> Iterator[Batch]:
    """Pictures Bx3xHxW in [-1, 1], masks Bx1xHxW, noise and moments of the diffusion, each step's drawn from its number."""
    sources = Sources(images, settings.crop, settings.resolution)
    for step in range(done, settings.steps):
        rng = generator(settings.seed, "inpainter", step)
        pictures = np.stack([sources.draw(rng)[1] for _ in range(settings.batch_size)])
        masks = np.stack([hole(settings.resolution, rng) for _ in range(settings.batch_size)])
        picture = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        random = torch.Generator().manual_seed(int(rng.integers(2**31)))
        noise = torch.randn(picture.shape, generator=random)
        yield picture, torch.from_numpy(masks)[:, None].float(), noise, torch.randint(moments, (len(picture),), generator=random)
