"""Trains a detector on change pairs, by whatever loss its course has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

from torch import nn
from torch.utils.data import Dataset

from changepair.tasks.common.files import content_of
from changepair.tasks.common.randomness import generator
from changepair.tasks.detectors.encoders import build_encoder
from changepair.tasks.detectors.load import build_detector
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.training.course import DetectorCourse
from changepair.tasks.training.given import start_from
from changepair.tasks.training.loop import Examples, Places, Trained, accelerator_for, begin, fit, pace_of
from changepair.tasks.training.pairs import Pairs, hashes, split_pairs
from changepair.tasks.training.settings import PairTrainingSettings


class PairCourse(DetectorCourse):
    """A query, its prompt and the mask of what changed an example; the loss is for those who inherit to say."""

    def __init__(
        self,
        name: str,
        detector: nn.Module,
        chosen: TrainedSettings,
        settings: PairTrainingSettings,
        training: Pairs,
        measured: Pairs,
    ) -> None:
        super().__init__(name, detector, chosen, settings)
        self.training = training
        self.measured = measured

    def examples(self, epoch: int) -> Dataset[Any]:
        return self.training

    def order(self, epoch: int) -> list[int]:
        return generator(self.settings.seed, "epoch", epoch).permutation(len(self.training)).tolist()

    def example(self, place: int) -> str:
        return f"pair {self.training.rows[place].key}"

    def held_out(self) -> Dataset[Any] | None:
        return self.measured if len(self.measured) else None


def train_on_pairs(
    course: type[PairCourse],
    detector: TrainedSettings,
    settings: PairTrainingSettings,
    *,
    examples: Examples,
    places: Places,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains on change pairs, as tasks/training/loop.py::fit says."""
    pairs = examples.pairs
    accelerator = accelerator_for(settings.precision)
    training, measured = (Pairs(pairs, rows, settings.resolution or detector.resolution) for rows in split_pairs(pairs))
    begin(settings.seed)
    model = build_detector(detector, build_encoder(detector.encoder, detector.resolution))
    given = start_from(settings.init, detector, model)
    return fit(
        course(places.model_folder.name, model, detector, settings, training, measured),
        pace_of(settings),
        places,
        accelerator=accelerator,
        inputs={
            "detector": asdict(cast(Any, detector)),
            "training": asdict(settings),
            "encoder": [content_of(file) for file in detector.encoder.files],
            **given,
            **hashes(pairs),
        },
        workers=workers,
        report=report,
    )
