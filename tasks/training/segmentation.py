"""Trains what segments a query against its prompt, on change pairs: pixel-wise binary cross-entropy, AdamW (MetaUAS, arXiv 2505.09265,
section 4.1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tasks.common.files import sha256
from tasks.common.randomness import generator
from tasks.detectors.encoders import build_encoder
from tasks.detectors.load import build_detector
from tasks.detectors.registry import name_of
from tasks.detectors.settings import TrainedSettings
from tasks.synthesis.synthesize import maker
from tasks.training.course import DetectorCourse
from tasks.training.given import start_from
from tasks.training.loop import Batch, Examples, Places, Trained, accelerator_for, begin, fit, pace_of
from tasks.training.pairs import FreshPairs, Pairs, hashes, split_pairs
from tasks.training.settings import SegmentationTrainingSettings


class SegmentationCourse(DetectorCourse):
    """Queries and prompts in, logits out, held against the masks."""

    def __init__(
        self,
        detector: nn.Module,
        chosen: TrainedSettings,
        settings: SegmentationTrainingSettings,
        training: Pairs,
        measured: Pairs,
        fresh: FreshPairs | None = None,
    ) -> None:
        """fresh: pairs of each epoch's own; None to learn from `training` every epoch."""
        super().__init__(name_of(chosen), detector, chosen, settings)
        self.training = training
        self.measured = measured
        self.fresh = fresh

    def examples(self, epoch: int) -> Dataset[Any]:
        return self.training if self.fresh is None else self.fresh.of(epoch)

    def order(self, epoch: int) -> list[int]:
        return generator(self.settings.seed, "epoch", epoch).permutation(len(self.training)).tolist()

    def held_out(self) -> Dataset[Any] | None:
        return self.measured if len(self.measured) else None

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        query, prompt, mask = batch
        return F.binary_cross_entropy_with_logits(model(query, prompt).float(), mask)


def train(
    detector: TrainedSettings,
    settings: SegmentationTrainingSettings,
    *,
    examples: Examples,
    places: Places,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains on change pairs, as tasks.training.loop.fit says."""
    pairs = examples.pairs
    accelerator = accelerator_for(settings.precision)
    training, measured = (Pairs(pairs, rows, settings.resolution or detector.resolution) for rows in split_pairs(pairs))
    begin(settings.seed)
    model = build_detector(detector, build_encoder(detector.encoder, detector.resolution))
    given = start_from(settings.init, detector, model)
    fresh = None
    if settings.data == "online":
        fresh = FreshPairs(training, maker(examples.synthesis, examples.made_of))
        given["synthesis"] = json.dumps(asdict(examples.synthesis), sort_keys=True)
        given |= {table.name: sha256(table) for table in (examples.made_of.sources, examples.made_of.textures, examples.made_of.objects)}
    return fit(
        SegmentationCourse(model, detector, settings, training, measured, fresh),
        pace_of(settings),
        places,
        accelerator=accelerator,
        inputs={
            "detector": asdict(cast(Any, detector)),
            "training": asdict(settings),
            **given,
            **hashes(pairs),
        },
        workers=workers,
        report=report,
    )
