"""Trains MetaUAS on change pairs: pixel-wise binary cross-entropy, AdamW (arXiv 2505.09265, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tasks.common.randomness import generator
from tasks.detectors.encoders import build_encoder
from tasks.detectors.load import build_detector
from tasks.detectors.metauas import MetaUASSettings
from tasks.training.course import DetectorCourse
from tasks.training.loop import Batch, Examples, Places, Trained, accelerator_for, begin, fit, pace_of
from tasks.training.pairs import Pairs, hashes, split_pairs
from tasks.training.settings import TrainingSettings


class MetaUASCourse(DetectorCourse):
    """Queries and prompts in, logits out, held against the masks."""

    def __init__(self, detector: nn.Module, chosen: MetaUASSettings, settings: TrainingSettings, training: Pairs, measured: Pairs) -> None:
        super().__init__("metauas", detector, chosen, settings)
        self.training = training
        self.measured = measured

    def examples(self, epoch: int) -> Dataset[Any]:
        return self.training

    def order(self, epoch: int) -> list[int]:
        return generator(self.settings.seed, "epoch", epoch).permutation(len(self.training)).tolist()

    def held_out(self) -> Dataset[Any] | None:
        return self.measured if len(self.measured) else None

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask = batch
        return F.binary_cross_entropy_with_logits(model(query, prompt).float(), mask)


def train(
    detector: MetaUASSettings,
    settings: TrainingSettings,
    *,
    examples: Examples,
    places: Places,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains on change pairs, as tasks.training.loop.fit says."""
    pairs = examples.pairs
    accelerator = accelerator_for(settings.precision)
    training, measured = (Pairs(pairs, rows, detector.resolution) for rows in split_pairs(pairs))
    begin(settings.seed)
    model = build_detector(detector, build_encoder(detector.encoder, detector.resolution))
    return fit(
        MetaUASCourse(model, detector, settings, training, measured),
        pace_of(settings),
        places,
        accelerator=accelerator,
        inputs={"detector": asdict(detector), "training": asdict(settings), **hashes(pairs)},
        workers=workers,
        report=report,
    )
