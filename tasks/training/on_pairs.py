"""Trains a detector on change pairs, by whatever loss its course has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from changepair.tasks.common.files import sha256
from changepair.tasks.common.randomness import generator
from changepair.tasks.synthesis.dataset import ChangePairs
from changepair.tasks.synthesis.synthesize import maker
from changepair.tasks.training.course import Blueprint, DetectorCourse
from changepair.tasks.training.loop import Examples, Places, Trained, accelerator_for, begin, fit, pace_of
from changepair.tasks.training.pairs import FreshPairs, hashes
from changepair.tasks.training.settings import PairTrainingSettings


class PairCourse(DetectorCourse):
    """A query, its prompt and the mask of what changed an example; the loss is for those who inherit to say."""

    def __init__(
        self,
        name: str,
        detector: nn.Module,
        blueprint: Blueprint,
        settings: PairTrainingSettings,
        training: ChangePairs,
        measured: ChangePairs,
        fresh: FreshPairs | None = None,
    ) -> None:
        """fresh: pairs of each epoch's own; None to learn from `training` every epoch."""
        super().__init__(name, detector, blueprint, settings)
        self.training = training
        self.measured = measured
        self.fresh = fresh

    def examples(self, epoch: int) -> Dataset[Any]:
        return self.training if self.fresh is None else self.fresh.of(epoch)

    def order(self, epoch: int) -> list[int]:
        return generator(self.settings.seed, "epoch", epoch).permutation(len(self.training)).tolist()

    def example(self, place: int) -> str:
        return f"pair {self.training.rows[place].key}"

    def held_out(self) -> Dataset[Any] | None:
        return self.measured if len(self.measured) else None


def train_on_pairs(
    course: type[PairCourse],
    blueprint: Blueprint,
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
    resolution = settings.resolution or blueprint.settings.resolution
    training, measured = (ChangePairs(pairs, resolution, held_out=held_out) for held_out in (False, True))
    begin(settings.seed)
    model, built = blueprint.build(settings.init)
    inputs = dict(built)
    fresh = None
    if settings.data == "online":
        fresh = FreshPairs(training, maker(examples.synthesis, examples.made_of))
        inputs["synthesis"] = json.dumps(asdict(examples.synthesis), sort_keys=True)
        inputs |= {table.name: sha256(table) for table in (examples.made_of.sources, examples.made_of.textures, examples.made_of.objects)}
    return fit(
        course(places.model_folder.name, model, blueprint, settings, training, measured, fresh),
        pace_of(settings),
        places,
        accelerator=accelerator,
        inputs={"training": asdict(settings), **inputs, **hashes(pairs)},
        workers=workers,
        report=report,
    )
