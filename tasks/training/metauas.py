"""Trains MetaUAS on change pairs: pixel-wise binary cross-entropy, AdamW (arXiv 2505.09265, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tasks.detector_settings import MetaUASSettings
from tasks.detectors import build_detector
from tasks.encoders import build_encoder
from tasks.randomness import generator
from tasks.training.loop import Batch, Places, Trained, accelerator_for, begin, fit
from tasks.training.pairs import Pairs, hashes, split_pairs
from tasks.training.settings import TrainingSettings


class MetaUASCourse:
    """Queries and prompts in, logits out, held against the masks."""

    def __init__(self, model: nn.Module, training: Pairs, measured: Pairs, seed: int) -> None:
        self.model = model
        self.training = training
        self.measured = measured
        self.seed = seed
        self.examples = len(training)

    def epoch(self, number: int) -> Dataset[Batch]:
        return self.training

    def order(self, number: int) -> list[int]:
        return generator(self.seed, "epoch", number).permutation(self.examples).tolist()

    def held_out(self) -> Dataset[Batch] | None:
        return self.measured if len(self.measured) else None

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask = batch
        return F.binary_cross_entropy_with_logits(model(query, prompt).float(), mask)


def train_metauas(
    detector: MetaUASSettings,
    settings: TrainingSettings,
    *,
    pairs: Path,
    places: Places,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains on the shards in `pairs`, as tasks.training.loop.fit says."""
    accelerator = accelerator_for(settings)
    training, measured = (Pairs(pairs, rows, detector.resolution) for rows in split_pairs(pairs, settings.held_out))
    begin(settings)
    model = build_detector(detector, build_encoder(detector.encoder, detector.resolution))
    return fit(
        MetaUASCourse(model, training, measured, settings.seed),
        settings,
        places,
        accelerator=accelerator,
        config={"detector": "metauas", "settings": asdict(detector)},
        inputs=hashes(pairs),
        workers=workers,
        report=report,
    )
