"""Train the small inpainting model on a pipeline's photographs. It learns to fill holes in square crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from changepair.tasks.common.devices import best_device
from changepair.tasks.common.files import made_anew, sha256
from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.randomness import generator
from changepair.tasks.inpainting.inpainter import PIPELINE_NAME
from changepair.tasks.inpainting.residual import Hole, hole, unpack
from changepair.tasks.inpainting.settings import InpainterSettings
from changepair.tasks.sampling.episodes import read_pictures
from changepair.tasks.training.loop import Trained, TrainingFolders, cosine, fit
from changepair.tasks.training.settings import TrainingSettings
from changepair.tasks.training.step import Batch

SCHEDULE = TrainingSettings(epochs=1, weight_decay=1e-4, largest_gradient=1.0, average=0.995, log_every=50, checkpoint_every=500)
WARM_UP = 50  # steps
HUBER = 0.5  # error, in units of the residual, above which the loss is linear, so that unpredictable content does not blur the rest


class InpainterTask:
    """Train on the residuals of holes. The result is the running mean of the weights."""

    name = "inpainter"

    def __init__(self, pipeline: Any, settings: InpainterSettings, images: Sequence[str], moments: int) -> None:
        """Set up the task. pipeline: a CropInpaintPipeline. moments: number of diffusion time steps."""
        self.pipeline, self.settings = pipeline, settings
        self.model = pipeline.unet.to(memory_format=torch.channels_last)
        self.steps = _Steps(settings, images, moments)

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """List the steps of the only epoch. A step's number determines its batch."""
        return [[step] for step in range(self.settings.steps)]

    def examples(self, epoch: int) -> Dataset[Any]:
        return self.steps

    def example(self, place: int) -> str:
        return f"the crops of step {place}"

    def collate(self, examples: list[Any]) -> Batch:
        [batch] = examples
        return tuple(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        picture, mask, noise, moments = batch
        holes = Hole.of(picture, mask)
        wanted = holes.residual()
        noisy = self.pipeline.scheduler.add_noise(wanted, noise, moments)
        predicted = unpack(model(holes.seen(noisy), moments).sample)
        return (F.huber_loss(predicted.float(), wanted, reduction="none", delta=HUBER) * holes.mask).sum() / (3 * holes.mask.sum())

    def held_out(self) -> Dataset[Any] | None:
        return None

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write folder/pipeline in diffusers' format."""
        self.pipeline.unet.load_state_dict(model.state_dict())
        with made_anew(folder / PIPELINE_NAME) as partial:
            self.pipeline.save_pretrained(partial, safe_serialization=True)


class _Steps(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Draw the batch of each step: pictures Bx3xHxW in [-1, 1], masks Bx1xHxW, noise, and diffusion time steps."""

    def __init__(self, settings: InpainterSettings, images: Sequence[str], moments: int) -> None:
        self.settings, self.moments = settings, moments
        self.photographs = Photographs(images, settings.crop, settings.resolution)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        settings = self.settings
        rng = generator(settings.seed, "inpainter", step)
        pictures = np.stack([self.photographs.draw(rng)[1] for _ in range(settings.batch_size)])
        masks = np.stack([hole(settings.resolution, rng) for _ in range(settings.batch_size)])
        picture = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        random = torch.Generator().manual_seed(int(rng.integers(2**31)))
        noise = torch.randn(picture.shape, generator=random)
        moments = torch.randint(self.moments, (len(picture),), generator=random)
        return picture, torch.from_numpy(masks)[:, None].float(), noise, moments


def train_inpainter(
    settings: InpainterSettings, sources: Path, *, places: TrainingFolders, report: Callable[[float], None] = lambda share: None
) -> Trained:
    """Train on the photographs in the table `sources`. See tasks/training/loop.py::fit."""
    from changepair.tasks.inpainting.crop_pipeline import TRAINED_STEPS, new_pipeline

    set_seed(settings.seed)
    pipeline = new_pipeline(settings.resolution, settings.channels).to(best_device())
    task = InpainterTask(pipeline, settings, [row.image for row in read_pictures(sources)], TRAINED_STEPS)
    inputs = {"settings": asdict(settings), "sources": sha256(sources)}
    schedule = replace(SCHEDULE, learning_rate=settings.learning_rate)
    return fit(task, schedule, places, inputs=inputs, workers=0, report=report, factor=_warmed)


def _warmed(step: int, steps: int) -> float:
    """Rise over WARM_UP steps, then fall to 0 as a cosine."""
    return min(1.0, (step + 1) / WARM_UP) * cosine(step, steps)
