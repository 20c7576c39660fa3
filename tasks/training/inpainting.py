"""Trains the small inpainting model on a pipeline's photographs: holes are cut into squares of them, and it learns what was there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from changepair.tasks.common.files import made_anew, sha256
from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.randomness import generator
from changepair.tasks.inpainting.inpainter import PIPELINE_NAME
from changepair.tasks.inpainting.residual import Hole, hole, unpack
from changepair.tasks.inpainting.settings import InpainterSettings
from changepair.tasks.sampling.episodes import read_pictures
from changepair.tasks.training.loop import Places, Schedule, Trained, accelerator_for, begin, cosine, fit
from changepair.tasks.training.step import Batch

AVERAGING = 0.995  # decay a step of the weights' running mean, which is what is kept
WARM_UP = 50  # steps
LARGEST_GRADIENT = 1.0
WEIGHT_DECAY = 1e-4
HUBER = 0.5  # units of the residual from which an error counts linearly: what nothing around foretells must not blur the rest
LOG_EVERY = 50  # steps
CHECKPOINT_EVERY = 500  # steps


class InpainterCourse:
    """Holes in, residuals out, held against what was there. The running mean of the weights is what is kept."""

    name = "inpainter"

    def __init__(self, pipeline: Any, settings: InpainterSettings, images: Sequence[str], moments: int) -> None:
        """pipeline: a CropInpaintPipeline. moments: of the diffusion."""
        self.pipeline = pipeline
        self.settings = settings
        self.model = pipeline.unet.to(memory_format=torch.channels_last)
        self.steps = _Steps(settings, images, moments)

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """Lists the steps: there is one epoch. A step's batch is drawn as a whole, from the step's number."""
        return [[step] for step in range(self.settings.steps)]

    def examples(self, epoch: int) -> Dataset[Any]:
        return self.steps

    def example(self, place: int) -> str:
        return f"the crops of step {place}"

    def collate(self, examples: list[Any]) -> Batch:
        [batch] = examples
        return tuple(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Gives the Huber loss of the residual in the hole."""
        picture, mask, noise, moments = batch
        holes = Hole.of(picture, mask)
        wanted = holes.residual()
        noisy = self.pipeline.scheduler.add_noise(wanted, noise, moments)
        predicted = unpack(model(holes.seen(noisy), moments).sample)
        return (F.huber_loss(predicted.float(), wanted, reduction="none", delta=HUBER) * holes.mask).sum() / (3 * holes.mask.sum())

    def held_out(self) -> Dataset[Any] | None:
        return None

    def save(self, folder: Path, model: nn.Module) -> None:
        """Writes folder/pipeline, as diffusers saves one."""
        self.pipeline.unet.load_state_dict(model.state_dict())
        with made_anew(folder / PIPELINE_NAME) as partial:
            self.pipeline.save_pretrained(partial, safe_serialization=True)


class _Steps(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """The batches of every step: pictures Bx3xHxW in [-1, 1], masks Bx1xHxW, noise and moments of the diffusion."""

    def __init__(self, settings: InpainterSettings, images: Sequence[str], moments: int) -> None:
        self.settings = settings
        self.photographs = Photographs(images, settings.crop, settings.resolution)
        self.moments = moments

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
    settings: InpainterSettings, sources: Path, *, places: Places, report: Callable[[float], None] = lambda share: None
) -> Trained:
    """Trains on the photographs that the table `sources` names, as tasks/training/loop.py::fit says."""
    from changepair.tasks.inpainting.crop_pipeline import TRAINED_STEPS, new_pipeline

    accelerator = accelerator_for("auto")
    begin(settings.seed)
    pipeline = new_pipeline(settings.resolution, settings.channels).to(accelerator.device)
    images = [row.image for row in read_pictures(sources)]
    return fit(
        InpainterCourse(pipeline, settings, images, TRAINED_STEPS),
        Schedule(1, settings.learning_rate, WEIGHT_DECAY, _warmed, LOG_EVERY, CHECKPOINT_EVERY, LARGEST_GRADIENT, AVERAGING),
        places,
        accelerator=accelerator,
        inputs={"settings": asdict(settings), "sources": sha256(sources)},
        workers=0,
        report=report,
    )


def _warmed(step: int, steps: int) -> float:
    """Rises over WARM_UP steps, then falls to 0 as a cosine."""
    return min(1.0, (step + 1) / WARM_UP) * cosine(step, steps)
