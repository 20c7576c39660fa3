"""Train a detector by the module that its kind names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import nn

from changepair.tasks.common.files import content_of
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.detectors.pretrained import start_from
from changepair.tasks.detectors.registry import DETECTORS, kind_of
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.detectors.store import create_detector, save_detector
from changepair.tasks.training.loop import Examples, Trained, TrainingFolders
from changepair.tasks.training.settings import TrainingSettings


@dataclass(frozen=True)
class Blueprint:
    """A detector that the training engine builds and saves (`Blueprint` of changepair.tasks.training.task)."""

    settings: TrainedSettings

    def build(self, init: str | None) -> tuple[nn.Module, Mapping[str, Any]]:
        detector = create_detector(self.settings)
        weights = start_from(init, self.settings, detector)
        encoder = [content_of(file) for file in self.settings.encoder.files]
        code = code_of(*DETECTORS[kind_of(self.settings)].modules).digest
        return detector, {"detector": asdict(cast(Any, self.settings)), "encoder": encoder, "model": code, **weights}

    def save(self, folder: Path, model: nn.Module, **about: Any) -> None:
        save_detector(folder, model, self.settings, **about)


def train(
    detector: TrainedSettings,
    settings: TrainingSettings,
    *,
    examples: Examples,
    places: TrainingFolders,
    workers: int,
    report: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Train a detector with its settings and those of its training. See changepair.tasks.training.loop.fit."""
    training = DETECTORS[kind_of(detector)].training
    assert training is not None
    run: Callable[..., Trained] = import_module(training.module).train
    return run(Blueprint(detector), settings, examples=examples, places=places, workers=workers, report=report)
