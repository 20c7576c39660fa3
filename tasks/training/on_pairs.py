"""Trains a detector on change pairs, by whatever loss its task has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from changepair.tasks.common.randomness import generator
from changepair.tasks.synthesis.dataset import ChangePairs, hashes
from changepair.tasks.training.loop import Examples, Places, Trained, accelerator_for, begin, fit, schedule_of
from changepair.tasks.training.settings import PairTrainingSettings
from changepair.tasks.training.task import Blueprint, DetectorTask


class PairTask(DetectorTask):
    """A query, its prompt and the mask of what changed an example; the loss is for those who inherit to say."""

    def __init__(
        self,
        name: str,
        detector: nn.Module,
        blueprint: Blueprint,
        settings: PairTrainingSettings,
        training: ChangePairs,
        measured: ChangePairs,
    ) -> None:
        super().__init__(name, detector, blueprint, settings)
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
    task: type[PairTask],
    blueprint: Blueprint,
    settings: PairTrainingSettings,
    *,
    examples: Examples,
    places: Places,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains on change pairs, as tasks/training/loop.py::fit says."""
    pairs = examples.path
    accelerator = accelerator_for(settings.precision)
    resolution = settings.resolution or blueprint.settings.resolution
    training, measured = (ChangePairs(pairs, resolution, held_out=held_out) for held_out in (False, True))
    begin(settings.seed)
    model, inputs = blueprint.build(settings.init)
    return fit(
        task(places.model_folder.name, model, blueprint, settings, training, measured),
        schedule_of(settings),
        places,
        accelerator=accelerator,
        inputs={"training": asdict(settings), **inputs, **hashes(pairs)},
        workers=workers,
        report=report,
    )
